"""SIMULATION: the real control loop, pools, ledger, buffer and admission around workers that sleep, on a virtual clock.

    python tests/benchmarks/simulation.py [cost] [makespan] [autoscale] [memory]

`cost`: CPU time a trajectory, the simulated workers' own included, at 10, 100 and 1,000 rollout workers. `makespan`: the
lower bound of a run's time (token work over slots, learner work, or the longest response) over the time it took, by
max_staleness, with lengths whose 99th percentile is ten times their median and a learner as busy as the workers.
`autoscale`: makespan of the best fixed split of twelve places over rollout and scoring workers, over that of the
autoscaler, which starts from an even split: under a steady load, and under responses that grow sixteenfold.
`memory`: what 100,000 trajectories leave behind.
"""

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulated import Groups, Lengths, Simulation, run_virtually

from rayrlhf.config import RunConfig
from rayrlhf.pipelines.scaling import Autoscaler
from rayrlhf.types import GroupId

PLACES = 12
"""Of the cluster that rollout and scoring workers share."""


def config(workers: int, *, prompts: int, samples: int, updates: int, staleness: int, slots: int) -> RunConfig:
    """Of a run that is never started."""
    return RunConfig.model_validate(
        {
            "name": "simulation",
            "stages": ["ppo"],
            "model": {"path": "none"},
            "data": {"task": {"name": "innkeeper"}},
            "rollout": {"workers": workers, "max_num_seqs": slots},
            "scoring": {"workers": max(1, workers // 8)},
            "ppo": {
                "prompts_per_step": prompts,
                "samples_per_prompt": samples,
                "updates": updates,
                "max_staleness": staleness,
                "minibatches": 1,
                "advantage": "grpo",
            },
        }
    )


def work_of(simulation: Simulation) -> tuple[int, int]:
    """Tokens of all responses, and of the longest."""
    ppo = simulation.config.ppo
    groups = Groups(ppo.samples_per_prompt)
    lengths = [
        simulation.lengths(sample_id)
        for step in range(ppo.updates)
        for position in range(ppo.prompts_per_step)
        for sample_id in groups.ids(GroupId("ppo", step, position))
    ]
    return sum(lengths), max(lengths)


def cost() -> None:
    """CPU time a trajectory by the number of workers, ABC CBA."""
    print("driver CPU a trajectory (SIMULATION; one process, simulated workers included)")
    times: dict[int, list[float]] = {10: [], 100: [], 1000: []}
    for workers in (10, 100, 1000, 1000, 100, 10):
        # As much work a worker in each: 8 groups of 4 between two versions of the weights.
        prompts = 8 * workers
        updates = max(4, 40_000 // (4 * prompts))
        simulation = Simulation(
            config=config(workers, prompts=prompts, samples=4, updates=updates, staleness=4, slots=8),
            lengths=lambda sample_id: 20 + (sample_id.prompt_id * 13 + sample_id.k * 7) % 50,
            learner_seconds=0.05,
            start_seconds=1.0,
        )
        begun = time.process_time()
        run_virtually(simulation.run())
        times[workers].append((time.process_time() - begun) / simulation.loop.ledger.trained)
    for workers, measured in times.items():
        best = min(measured)
        told = " ".join(f"{seconds * 1e6:.0f}" for seconds in measured)
        print(f"{workers:5d} workers: {told} us, {1 / best:,.0f} trajectories a second")
    print(f"1000 over 10 workers: {min(times[1000]) / min(times[10]):.2f}")


def makespan() -> None:
    """Efficiency by staleness."""
    print("makespan lower bound / makespan (SIMULATION; 64 slots, P99 = 10 x median, learner as busy as the workers)")
    for staleness in (0, 1, 4, 8):
        simulation = Simulation(
            config=config(8, prompts=128, samples=4, updates=60, staleness=staleness, slots=8),
            lengths=Lengths(median=100.0),
            learner_seconds=0.0,
            start_seconds=1.0,
        )
        tokens, longest = work_of(simulation)
        simulation.learner.seconds = tokens / 64 * simulation.token_seconds / simulation.config.ppo.updates
        run_virtually(simulation.run())
        bound = max(tokens / 64 * simulation.token_seconds, simulation.learner.busy, longest * simulation.token_seconds)
        stale = max(simulation.staleness)
        print(
            f"max_staleness {staleness}: {bound / simulation.makespan:.3f}, largest staleness {stale}, mean "
            f"{sum(simulation.staleness) / len(simulation.staleness):.2f}, learner busy "
            f"{simulation.learner.busy / simulation.makespan:.3f}"
        )
        assert stale <= staleness


def autoscale() -> None:
    """The autoscaler against every fixed split of the same places."""
    print(f"best fixed split / autoscaler, by makespan (SIMULATION; {PLACES} places, a start takes 10 s)")
    updates = 200
    for load, lengths, sample_seconds in (
        ("steady", Lengths(median=100.0), 0.6),
        ("drifting", Lengths(median=25.0, drift=16.0, steps=updates), 0.6),
    ):
        fixed = {
            rollout: split(rollout, updates=updates, lengths=lengths, sample_seconds=sample_seconds).makespan
            for rollout in range(1, PLACES)
        }
        scaled = split(PLACES // 2, updates=updates, lengths=lengths, sample_seconds=sample_seconds, scaled=True)
        best = min(fixed, key=lambda rollout: fixed[rollout])
        print(
            f"{load}: {fixed[best] / scaled.makespan:.3f}; autoscaler {scaled.makespan:,.0f} s, fixed by rollout workers "
            + ", ".join(f"{rollout}: {seconds:,.0f} s" for rollout, seconds in fixed.items())
        )
        for event in scaled.events:
            if event.kind == "scale":
                print(f"    update {event.step}: {event.text}")


def split(rollout: int, *, updates: int, lengths: Lengths, sample_seconds: float, scaled: bool = False) -> Simulation:
    """A run that begins with so many of the places for rollout workers, and the rest for scoring workers."""
    bounds = {"autoscale": {"min": 1, "max": PLACES - 1}} if scaled else {}
    settings = config(rollout, prompts=32, samples=4, updates=updates, staleness=8, slots=8).model_dump()
    settings["rollout"] |= bounds
    settings["scoring"] |= {"workers": PLACES - rollout} | bounds
    simulation = Simulation(
        config=RunConfig.model_validate(settings),
        lengths=lengths,
        learner_seconds=1.5,
        token_seconds=0.06,
        sample_seconds=sample_seconds,
        places=PLACES,
        beside=autoscaled if scaled else None,
    )
    return run_virtually(simulation.run())


async def autoscaled(simulation: Simulation) -> None:
    """The autoscaler, beside a simulated run."""
    scaler = Autoscaler(
        simulation.config,
        loop=simulation.loop,
        rollout=simulation.rollout,
        scoring=simulation.scoring,
        tell=simulation.events.append,
    )
    await scaler.run()


def memory() -> None:
    """Bytes held after one tenth of the run and at its end."""
    held: list[int] = []

    def look(simulation: Simulation, update: object) -> None:
        if simulation.loop.version % 50 == 0:
            simulation.staleness.clear()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    simulation = Simulation(
        config=config(16, prompts=50, samples=4, updates=500, staleness=2, slots=8),
        lengths=lambda sample_id: 20 + (sample_id.prompt_id * 13 + sample_id.k * 7) % 50,
        learner_seconds=0.05,
        start_seconds=1.0,
        after=look,
    )
    run_virtually(simulation.run())
    tracemalloc.stop()
    print(f"memory over {simulation.loop.ledger.trained:,} trajectories (SIMULATION), KiB:", [h // 1024 for h in held])


PARTS: dict[str, Callable[[], None]] = {"cost": cost, "makespan": makespan, "autoscale": autoscale, "memory": memory}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
