"""The autoscaler beside the real control loop, around sleeping workers on a clock that jumps."""

from simulated import Simulation, run_virtually
from simulation import autoscaled

from rayrlhf.config import RunConfig
from rayrlhf.pipelines.loop import Update
from rayrlhf.pipelines.scaling import goes_on_from


def scaled(workers: int, *, learner_seconds: float, updates: int = 60) -> tuple[Simulation, list[int]]:
    """A run of 16 groups of 4 responses a step, and how many rollout workers served after each update."""
    settings = RunConfig.model_validate(
        {
            "name": "autoscaled",
            "stages": ["ppo"],
            "model": {"path": "none"},
            "data": {"task": {"name": "innkeeper"}},
            "rollout": {"workers": workers, "max_num_seqs": 8, "autoscale": {"min": 1, "max": 6}},
            "scoring": {"workers": 2},
            "ppo": {
                "prompts_per_step": 16,
                "samples_per_prompt": 4,
                "updates": updates,
                "max_staleness": 2,
                "minibatches": 1,
                "advantage": "grpo",
            },
        }
    )
    served: list[int] = []

    def after(simulation: Simulation, _: Update) -> None:
        served.append(len(simulation.rollout.pool.serving))

    simulation = Simulation(
        config=settings,
        lengths=lambda sample_id: 60 + (sample_id.prompt_id * 13 + sample_id.k * 7) % 40,
        learner_seconds=learner_seconds,
        after=after,
        beside=autoscaled,
    )
    return run_virtually(simulation.run()), served


def accounted(simulation: Simulation) -> None:
    ledger, ppo = simulation.loop.ledger, simulation.config.ppo
    assert ledger.trained == ppo.updates * ppo.samples_per_step
    assert (ledger.lost, ledger.duplicated, ledger.in_flight) == (0, 0, 0)
    assert max(simulation.staleness) <= ppo.max_staleness
    assert simulation.scoring.pool.size == 2


def test_a_run_grows_from_its_least_where_the_learner_waits() -> None:
    simulation, served = scaled(1, learner_seconds=3.0)
    accounted(simulation)
    assert (served[0], max(served)) == (1, served[-1])
    assert 4 <= served[-1] <= 6
    first = next(event for event in simulation.events if event.kind == "scale")
    assert first.text.startswith("Autoscaling: rollout workers 1 -> 2, the learner waits ")
    assert first.text.endswith(" % of the time and all workers are busy.")


def test_a_run_shrinks_to_what_is_used_where_the_learner_is_slow() -> None:
    simulation, served = scaled(6, learner_seconds=12.0)
    accounted(simulation)
    assert served[0] == 6
    assert served[-1] <= 2
    assert simulation.makespan < 1.05 * 60 * 12.0 + 20.0


def test_sizes_set_by_hand_are_told_to_be_gone_on_from_where_a_role_is_autoscaled() -> None:
    settings = scaled(2, learner_seconds=1.0, updates=2)[0].config
    assert goes_on_from(settings, ["scoring"]) == ""
    assert goes_on_from(settings, ["scoring", "rollout"]) == (
        " Autoscaling of rollout workers goes on from there, between 1 and 6."
    )
