"""What of a PPO stage outlives its driver: a checkpoint every so often, and after each update the way from there."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayrlhf.config import RunConfig
from rayrlhf.errors import CheckpointError
from rayrlhf.experience.spool import ExperienceSpool, SpooledUpdate
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.folder import RunFolder
from rayrlhf.pipelines.trainer import Trainer
from rayrlhf.telemetry.events import Event


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a stage goes on: from a checkpoint, if there is one, and the updates after it that are on disk."""

    checkpoint: str | None
    updates: tuple[SpooledUpdate, ...]
    driver_state: dict[str, Any]
    skipped: tuple[str, ...]
    """Newer checkpoints that are not complete."""
    step: int

    @property
    def told(self) -> str:
        """The point in words."""
        start = "the start" if self.checkpoint is None else self.checkpoint.rpartition("/")[2]
        return f"{start} and {len(self.updates)} updates after it" if self.updates else start


def resume_point(folder: RunFolder, config: RunConfig, *, spool: bool = True) -> ResumePoint | None:
    """The newest point of the ppo stage; None where nothing of it is saved. Without `spool`, a checkpoint alone."""
    checkpoint, skipped = CheckpointStore(folder.checkpoints("ppo"), keep=config.checkpoint.keep).newest()
    step = 0 if checkpoint is None else checkpoint.step
    updates = ExperienceSpool(folder.spool).updates(step) if spool else []
    if checkpoint is None and not updates:
        return None
    state = updates[-1].driver_state if updates else {} if checkpoint is None else checkpoint.driver_state
    return ResumePoint(
        checkpoint=None if checkpoint is None else str(checkpoint.directory),
        updates=tuple(updates),
        driver_state=state,
        skipped=tuple(skipped),
        step=step + len(updates),
    )


class Saving:
    """Writes checkpoints and completes spooled updates, each with the driver's state."""

    def __init__(self, context: RunContext, trainer: Trainer, *, driver_state: Callable[[], dict[str, Any]]) -> None:
        self._every = context.config.checkpoint.every
        self._store = CheckpointStore(context.folder.checkpoints("ppo"), keep=context.config.checkpoint.keep)
        self._trainer = trainer
        self._driver_state = driver_state
        self._tell = context.events.tell

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step` updates."""
        return step % self._every == 0 or self._trainer.full

    async def checkpoint(self, step: int) -> float:
        """Write a checkpoint; the seconds it took."""
        begun = asyncio.get_running_loop().time()
        with self._store.write(step, self._driver_state()) as directory:
            await self._trainer.save(str(directory))
        newest, _ = self._store.newest()
        if newest is None or newest.step != step:
            raise CheckpointError(f"The checkpoint of step {step} is not whole after it was written.")
        self._trainer.saved(str(newest.directory), step)
        seconds = asyncio.get_running_loop().time() - begun
        self._tell(Event(kind="checkpoint", text=f"Checkpoint of update {step} written in {seconds:.1f} s.", step=step))
        return seconds

    def updated(self) -> None:
        """An update is done, with its evaluation and its row of metrics."""
        self._trainer.updated(self._driver_state())
