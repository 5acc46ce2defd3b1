"""The real control loop around sleeping workers, on a clock that jumps."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from simulated import Lengths, Simulation, after, run_virtually

from rayrlhf.actors.calls import ActorLostError
from rayrlhf.actors.replica import State
from rayrlhf.config import RunConfig
from rayrlhf.errors import LedgerError, WorkerError


def config(*, staleness: int, workers: int = 4, updates: int = 12, **role: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "simulated",
            "stages": ["ppo"],
            "model": {"path": "none"},
            "data": {"task": {"name": "innkeeper"}},
            "rollout": {"workers": workers, "max_num_seqs": 8, **role},
            "scoring": {"workers": 2, **role},
            "ppo": {
                "prompts_per_step": 16,
                "samples_per_prompt": 4,
                "updates": updates,
                "max_staleness": staleness,
                "minibatches": 1,
                "advantage": "grpo",
            },
        }
    )


def simulated(settings: RunConfig, *, learner_seconds: float = 2.0, **options: Any) -> Simulation:
    options = {"lengths": Lengths(median=40.0), "learner_seconds": learner_seconds} | options
    return run_virtually(Simulation(config=settings, **options).run())


def accounted(simulation: Simulation) -> None:
    ledger, ppo = simulation.loop.ledger, simulation.config.ppo
    assert ledger.trained == ppo.updates * ppo.samples_per_step
    assert (ledger.lost, ledger.duplicated, ledger.dropped, ledger.in_flight) == (0, 0, 0, 0)
    assert len(simulation.staleness) == ppo.updates * ppo.prompts_per_step
    assert max(simulation.staleness) <= ppo.max_staleness


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_everything_is_trained_once_and_within_the_bound(staleness: int) -> None:
    accounted(simulated(config(staleness=staleness)))


def test_without_staleness_a_step_waits_for_its_longest_response_and_with_it_for_none() -> None:
    """Balanced load: the roles take turns, or work at the same time."""
    synchronous, asynchronous = (simulated(config(staleness=s, updates=30)).makespan for s in (0, 4))
    assert synchronous / asynchronous > 1.6


def test_a_slow_learner_is_kept_busy_by_groups_no_staler_than_that_takes() -> None:
    """The workers could fill all that the bound lets in: one batch in waiting is enough."""
    slow = simulated(config(staleness=4, updates=40), learner_seconds=8.0)
    accounted(slow)
    assert slow.learner.busy / slow.makespan > 0.97
    settled = slow.staleness[len(slow.staleness) // 2 :]
    assert sum(settled) / len(settled) < 2.5  # held back by the bound alone it is 4.0


def test_a_slow_worker_costs_its_own_share_only() -> None:
    """One of four works at a third of the speed: the others draw most of it."""

    async def slow_down(simulation: Simulation) -> None:
        await simulation.rollout.pool.ready()
        simulation.rollout.pool.replicas[0].handle.worker._token_seconds *= 3
        await asyncio.Event().wait()

    settings = config(staleness=8, updates=40)
    even = simulated(settings, learner_seconds=0.1)
    uneven = simulated(settings, learner_seconds=0.1, beside=slow_down)
    accounted(uneven)
    assert uneven.makespan < 1.35 * even.makespan  # 4 / 3.33 of the capacity is 1.2; an equal share for all would be 3


async def killing(simulation: Simulation, every: float) -> None:
    number = 0
    while True:
        await asyncio.sleep(every)
        serving = [r for pool in (simulation.rollout.pool, simulation.scoring.pool) for r in pool.serving]
        if serving:
            serving[number % len(serving)].lose(ActorLostError("It was killed."))
            number += 1


@pytest.mark.parametrize("staleness", [0, 3])
def test_workers_that_die_all_the_time_lose_and_double_nothing(staleness: int) -> None:
    simulation = simulated(
        config(staleness=staleness, updates=30, max_restarts=10_000),
        beside=lambda s: killing(s, 7.0),
        start_seconds=3.0,
    )
    accounted(simulation)
    assert simulation.rollout.pool.restarts + simulation.scoring.pool.restarts >= 5
    assert simulation.loop.ledger.reissued > 0
    deaths = [event for event in simulation.events if event.kind == "death"]
    assert any("samples are drawn again" in event.text for event in deaths)


def test_more_losses_than_the_budget_bears_end_the_run_with_a_sentence() -> None:
    with pytest.raises(WorkerError, match=r"The (rollout|scoring) pool has lost more than 3 workers within 600 s"):
        simulated(config(staleness=1, updates=200), beside=lambda s: killing(s, 2.0))


def test_the_others_go_on_while_a_worker_is_replaced() -> None:
    """A replacement takes 60 s: with staleness allowed, the learner does not notice."""

    async def kill_one(simulation: Simulation) -> None:
        await simulation.rollout.pool.ready()
        await asyncio.sleep(20.0)
        simulation.rollout.pool.serving[0].lose(ActorLostError("It was killed."))
        await asyncio.Event().wait()

    options: dict[str, Any] = {"learner_seconds": 4.0, "start_seconds": 60.0}
    undisturbed = simulated(config(staleness=2, updates=20), **options)
    hurt = simulated(config(staleness=2, updates=20), **options, beside=kill_one)
    accounted(hurt)
    assert hurt.makespan < 1.05 * undisturbed.makespan


def resizing(*sizes: int) -> Any:
    async def resize(simulation: Simulation) -> None:
        for size in sizes:
            await asyncio.sleep(15.0)
            await simulation.rollout.pool.resize(size)
        await asyncio.Event().wait()

    def beside(simulation: Simulation) -> Coroutine[Any, Any, None]:
        return resize(simulation)

    return beside


def test_a_run_grows_and_shrinks_while_it_goes_on() -> None:
    simulation = simulated(
        config(staleness=2, updates=40), beside=resizing(8, 2, 5, 1), learner_seconds=0.5, start_seconds=2.0
    )
    accounted(simulation)
    assert simulation.rollout.pool.restarts == 0
    assert not [event for event in simulation.events if event.kind == "death"]


def test_growing_without_a_place_waits_and_says_so() -> None:
    simulation = simulated(config(staleness=2, updates=40), beside=resizing(5), learner_seconds=2.0, places=6)
    accounted(simulation)
    waits = [event.text for event in simulation.events if event.kind == "wait"]
    assert waits[0].startswith("Waiting 30 s for a place with 1 CPU, and a process there, for rollout worker 4")


def test_growing_helps_where_workers_are_what_is_lacking() -> None:
    few, more = (
        simulated(config(staleness=4, updates=60), lengths=lambda _: 80, learner_seconds=0.1, **options).makespan
        for options in ({}, {"beside": resizing(12)})
    )
    assert more < 0.6 * few


def test_a_worker_that_starts_serves_only_once_it_has_caught_up() -> None:
    seen: set[tuple[str, int]] = set()

    async def watch(simulation: Simulation) -> None:
        await simulation.rollout.pool.ready()
        await simulation.rollout.pool.resize(6)
        while True:
            for replica in simulation.rollout.pool.replicas:
                if replica.state is State.SERVING:
                    assert replica.version is not None
                    seen.add((str(replica.state), replica.number))
                    assert simulation.loop.version - replica.version <= 1
            await asyncio.sleep(0.05)

    simulation = simulated(config(staleness=1, updates=30), beside=watch, start_seconds=5.0)
    accounted(simulation)
    assert ("serving", 5) in seen


@pytest.mark.parametrize("event", ["shrink", "kill"])
def test_a_synchronous_run_does_not_wait_for_a_worker_that_leaves_before_it_has_loaded_the_weights(event: str) -> None:
    """Loading takes long: the worker goes while everybody waits for its acknowledgement."""

    async def leave(simulation: Simulation) -> None:
        await simulation.rollout.pool.ready()
        last = simulation.rollout.pool.serving[-1]
        load = last.handle.worker.apply_weights
        last.handle.worker.apply_weights = lambda manifest, *_: after(5.0 if manifest else 0.0, load(manifest))
        while simulation.rollout._version < 2:
            await asyncio.sleep(0.01)
        if event == "kill":
            last.lose(ActorLostError("It was killed."))
        else:
            await simulation.rollout.pool.resize(3)
        await asyncio.Event().wait()

    simulation = simulated(config(staleness=0, updates=6), beside=leave)
    accounted(simulation)
    assert simulation.makespan < 200.0


@pytest.mark.parametrize("staleness", [0, 3])
def test_a_switch_comes_between_two_updates_with_nothing_in_flight(staleness: int) -> None:
    seen: dict[str, int] = {}

    async def switch(simulation: Simulation) -> None:
        loop = simulation.loop

        async def act() -> None:
            assert loop.admission.in_flight == loop.ledger.in_flight == len(loop.buffer) == 0
            seen["after"] = loop.version
            await asyncio.sleep(20.0)
            assert loop.ledger.in_flight == 0

        while loop.version < 4:
            await asyncio.sleep(0.1)
        seen["planned"] = loop.at_boundary(act)
        with pytest.raises(LedgerError, match="Another switch waits for update"):
            loop.at_boundary(act)
        await asyncio.Event().wait()

    simulation = simulated(config(staleness=staleness, updates=20), beside=switch)
    accounted(simulation)
    assert seen["after"] == seen["planned"] >= 4
