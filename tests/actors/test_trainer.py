"""A real learner process that dies at a chosen moment: the next one makes the same weights, or says that it cannot."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import learner_lab
import pytest
import ray
import torch
from learner_lab import critic_model, hand_made, policy_model, run_config, tokenizer

from rayrlhf.config import RunConfig
from rayrlhf.errors import WorkerError
from rayrlhf.experience.buffer import ScoredGroup
from rayrlhf.experience.spool import ExperienceSpool, write_batch
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.learner.process_group import Ranks
from rayrlhf.pipelines.trainer import Trainer
from rayrlhf.telemetry.events import Event
from rayrlhf.types import GroupId

UPDATES = 4


class Mortal(PPOLearner):
    """Kills its own process once, on the way into `method` under version `at`; the next one is the same, or is not."""

    grave: Path
    method: str
    at: int

    def update(self, step: int, scored: Any) -> dict[str, float]:
        self._perhaps_die("update")
        return super().update(step, scored)

    def publish(self) -> Any:
        self._perhaps_die("publish")
        return super().publish()

    def last_words(self) -> str:
        self._perhaps_die("last_words")
        return "none"

    def _perhaps_die(self, method: str) -> None:
        if (method, self.version) == (self.method, self.at) and not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def build(config: RunConfig, ranks: Ranks, *, grave: Path, method: str, at: int, unlike: bool = False) -> Mortal:
    torch.set_num_threads(1)
    seed = 7 if unlike and grave.exists() else 0
    learner = Mortal(config, policy=policy_model(seed), critic=critic_model(), tokenizer=tokenizer(), ranks=ranks)
    learner.grave, learner.method, learner.at = grave, method, at
    return learner


class Recorder:
    """Writes the batches and nothing else."""

    async def samples(self, step: int, wanted: Any, refs: Any, path: Path) -> dict[str, float]:
        write_batch(path, [item for ref in refs for item in ray.get(ref)])
        return {}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(learner_lab.__file__).parent)])
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    yield
    ray.shutdown()


@asynccontextmanager
async def training(folder: Path, told: list[Event], method: str, at: int, **options: Any) -> AsyncIterator[Trainer]:
    config = run_config(learner={"cpus": 0.1, "threads": 1, "start_timeout": 120.0})
    context: Any = SimpleNamespace(
        config=config,
        device="cpu",
        folder=SimpleNamespace(spool=folder / "experience"),
        recorder=Recorder(),
        events=SimpleNamespace(tell=told.append),
        console=SimpleNamespace(warn=lambda text: told.append(Event(kind="warning", text=text))),
    )
    trainer = Trainer(context, partial(build, grave=folder / "grave", method=method, at=at, **options))
    try:
        await trainer.start()
        yield trainer
    finally:
        trainer.stop()


async def digests(trainer: Trainer) -> list[str]:
    """Of the weights after each update."""
    found = [(await trainer.publish()).digest]
    await trainer.call("last_words")
    for step in range(UPDATES):
        batch = hand_made(16, seed=step, version=step)
        ref = ray.put(batch)
        ids = tuple(item.trajectory.sample_id for item in batch)
        lease = ScoredGroup(
            group_id=GroupId("ppo", step, 0), sample_ids=ids, ref=ref, tokens=1, drawn_at=0.0, scored_at=0.0
        )
        await trainer.receive(step, [lease])
        await trainer.update(step)
        await trainer.call("last_words")
        found.append((await trainer.publish()).digest)
        await trainer.call("last_words")
        trainer.updated({})
    return found


_undisturbed: list[str] = []
"""What the first test to ask finds out for all."""


async def undisturbed(folder: Path) -> list[str]:
    if not _undisturbed:
        told: list[Event] = []
        async with training(folder, told, "never", 0) as trainer:
            _undisturbed.extend(await digests(trainer))
        assert not told
        assert len(set(_undisturbed)) == UPDATES + 1
    return _undisturbed


@pytest.mark.parametrize(("method", "at"), [("update", 2), ("publish", 3)])
async def test_wherever_it_dies_the_weights_are_those_of_a_learner_that_lived(
    method: str, at: int, tmp_path: Path
) -> None:
    """publish of version 3 comes after an update whose weights nobody holds yet."""
    expected = await undisturbed(tmp_path / "undisturbed")
    told: list[Event] = []
    async with training(tmp_path, told, method, at) as trainer:
        assert await digests(trainer) == expected
        assert trainer.restarts == 1
    assert (tmp_path / "grave").exists()
    assert [event.kind for event in told] == ["death", "replacement"]
    assert "repeated in" in told[1].text
    assert "with the same weights" in told[1].text


async def test_a_learner_whose_updates_do_not_repeat_ends_the_run_with_what_is_wrong(tmp_path: Path) -> None:
    """Held to what the engines hold, also where that is not the newest."""
    told: list[Event] = []
    async with training(tmp_path, told, "last_words", 3, unlike=True) as trainer:
        with pytest.raises(WorkerError) as caught:
            await digests(trainer)
    text = str(caught.value)
    assert "weights of version 2 are not those that the lost one published, which the engines hold" in text
    assert "do not repeat exactly" in text
    assert "go on from the checkpoint" in text


@pytest.mark.parametrize("unlike", [False, True])
async def test_a_resume_whose_updates_do_not_repeat_goes_on_and_warns(unlike: bool, tmp_path: Path) -> None:
    told: list[Event] = []
    async with training(tmp_path, told, "never", 0) as trainer:
        await digests(trainer)
    done = ExperienceSpool(tmp_path / "experience").updates(0)
    assert len(done) == UPDATES
    (tmp_path / "grave").touch()
    async with training(tmp_path, told, "never", 0, unlike=unlike) as trainer:
        await trainer.resume(None, done)
        assert await trainer.call("version") == UPDATES
        assert ((await trainer.publish()).digest == done[-1].digest) is not unlike
    assert [event.kind for event in told] == ["warning"] * unlike
    assert (
        not unlike or f"The weights of update {UPDATES}, repeated, are not bit for bit those of before" in told[0].text
    )
