"""The learner as the control loop knows it: a batch in, metrics and weights out, whatever becomes of its processes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rayrlhf.actors.learner import Build, LearnerGroup, LearnerLostError, lost_too_often
from rayrlhf.actors.pool import PAUSE_SECONDS, nodes_changed
from rayrlhf.actors.replica import RestartBudget
from rayrlhf.actors.rollout import PublishedWeights
from rayrlhf.algorithms.mismatch import Mismatch
from rayrlhf.errors import WorkerError
from rayrlhf.experience.buffer import ScoredGroup
from rayrlhf.experience.spool import Calls, ExperienceSpool, SpooledUpdate
from rayrlhf.pipelines.context import RunContext
from rayrlhf.telemetry.events import Event

Result = TypeVar("Result")


class Trainer:
    """A learner that is replaced when it dies.

    Every batch is on disk before its update begins, and the update is deterministic: a new learner loads the last
    checkpoint, repeats the updates since then, and is where the lost one was. The engines notice nothing, as long as the
    weights it publishes are the ones they hold.
    """

    def __init__(self, context: RunContext, build: Build) -> None:
        self._context = context
        self._config = context.config
        self._build = build
        self._spool: ExperienceSpool | None = None
        if self._config.checkpoint.spool:
            self._spool = ExperienceSpool(context.folder.spool)
        self._budget = RestartBudget(most=self._config.learner.max_restarts, window=self._config.learner.restart_window)
        self._started_at = self._since_state = 0.0
        self._state = "starting"
        self._checkpoint: str | None = None
        self._since: list[SpooledUpdate] = []
        """Updates since the checkpoint."""
        self._before: Calls = ()
        """What changed the learner since the checkpoint, before the first of them."""
        self._received: int | None = None
        """Update whose batch the learner holds and has not begun."""
        self._published: PublishedWeights | None = None
        """What the engines are held to: a learner that repeats its updates must come by these weights."""
        self._bucket_count = 0
        self.restarts = 0
        self._group = LearnerGroup(self._config, device=context.device)

    async def start(self) -> None:
        """Make the learner on every rank."""
        self._started_at = self._since_state = _now()
        self._state = "starting"
        await self._group.start(self._build)
        self._state, self._since_state = "serving", _now()

    def workers(self, now: float) -> list[dict[str, Any]]:
        """Its ranks, for those who watch."""
        return [
            {
                "role": "learner",
                "number": rank,
                "state": self._state,
                "seconds": now - self._since_state,
                "version": None,
                "in_work": None,
                "pid": pid,
                "node": node,
            }
            for rank, (node, pid) in enumerate(self._group.places)
        ]

    async def resume(self, checkpoint: str | None, updates: Sequence[SpooledUpdate]) -> None:
        """Go on from a checkpoint, None for the start, and the updates after it."""
        self._checkpoint, self._since = checkpoint, [replace(update, driver_state={}) for update in updates]
        await self._surviving(self._catch_up)
        if updates and (await self._surviving(self._publish)).digest != updates[-1].digest:
            self._context.console.warn(
                f"The weights of update {updates[-1].step + 1}, repeated, are not bit for bit those of before: updates do not "
                f"repeat exactly on this hardware. The run goes on from the repeated ones.",
            )

    def stop(self) -> None:
        """End the learner's processes."""
        self._group.stop()

    # -- what is asked of it ----------------------------------------------------------------------------------------

    async def receive(self, step: int, batch: Sequence[ScoredGroup]) -> dict[str, float]:
        """Bring the learner a batch and write its samples down; what their texts tell.

        LostObjectError, with nothing begun, where a part of it is lost.
        """
        wanted = [sample_id for group in batch for sample_id in group.sample_ids]
        refs = list({group.ref.hex(): group.ref for group in batch}.values())
        path = self._spool.batch_path(step) if self._spool is not None else None
        await self._surviving(lambda: self._group.receive(wanted, refs))
        figures = await self._context.recorder.samples(step + 1, wanted, refs, path)
        self._received = step
        return figures

    async def update(self, step: int) -> dict[str, float]:
        """One update on what was received; its metrics."""
        metrics = await self._surviving(lambda: self._group.update(step))
        self._received = None
        if self._spool is not None:
            self._since.append(SpooledUpdate(step=step, path=self._spool.batch_path(step), before=self._before))
            self._before = ()
        return metrics

    async def publish(self) -> PublishedWeights:
        """The policy's weights as references that outlive the learner."""
        self._published = await self._surviving(self._publish)
        return self._published

    async def mismatch(self, chunks: list[Any]) -> Mismatch:
        """Engine against learner on the trajectories behind the references."""
        return await self._surviving(lambda: self._group.mismatch(chunks))

    async def call(self, method: str, *args: Any) -> Any:
        """Read or write something of the learner that leaves it as it is."""
        return await self._surviving(lambda: self._group.call(method, *args))

    async def change(self, method: str, *args: Any) -> None:
        """Have a method change the learner, and remember that."""
        await self.call(method, *args)
        if self._since:
            last = self._since[-1]
            self._since[-1] = replace(last, calls=(*last.calls, (method, args)))
        else:
            self._before = (*self._before, (method, args))

    # -- what is kept for the next one ------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the spool has outgrown its bound, so that a checkpoint is due."""
        return self._spool is not None and self._spool.bytes > self._config.checkpoint.spool_gib * 2**30

    def updated(self, driver_state: dict[str, Any]) -> None:
        """An update is done with all that follows it: a driver that dies goes on from here."""
        if self._spool is not None and self._since:
            last = self._since[-1]
            assert self._published is not None
            self._spool.complete(replace(last, digest=self._published.digest, driver_state=driver_state))

    async def save(self, directory: str) -> None:
        """Write the learner's part of a checkpoint."""
        await self.call("save", directory)

    def saved(self, checkpoint: str, version: int) -> None:
        """A checkpoint is complete: what led to it is not needed any more."""
        self._checkpoint, self._since, self._before = checkpoint, [], ()
        if self._spool is not None:
            self._spool.forget(version)

    # -- after a death ----------------------------------------------------------------------------------------------

    async def _surviving(self, act: Callable[[], Awaitable[Result]]) -> Result:
        while True:
            try:
                return await act()
            except LearnerLostError as loss:
                await self._replace(loss)

    async def _replace(self, loss: LearnerLostError) -> None:
        if self._spool is None:
            raise WorkerError(f"{loss} With checkpoint.spool=false the run ends with its learner.") from loss
        begun, pause = _now(), PAUSE_SECONDS
        while True:
            self.restarts += 1
            if not self._budget.bear(_now(), node=None, born=self._started_at):
                raise lost_too_often(loss, self._config) from loss
            self._tell("death", f"{loss} A new learner starts.")
            self._group.stop()
            self._group = LearnerGroup(self._config, device=self._context.device, name=f"learner.{self.restarts}")
            try:
                await self.start()
                started = _now()
                self._state = "repeating updates"
                await self._catch_up()
                self._state, self._since_state = "serving", _now()
                break
            except LearnerLostError as again:
                loss = again
                # Until Ray has marked a dead node it sends the new learner there too.
                if await nodes_changed(pause):
                    self._budget.forgive()
                pause *= 2.0
        since = "the start" if self._checkpoint is None else self._checkpoint.rpartition("/")[2]
        self._tell(
            "replacement",
            f"The learner is replaced after {_now() - begun:.0f} s: {len(self._since)} updates since {since} repeated in "
            f"{_now() - started:.1f} s, with the same weights.",
        )

    async def _catch_up(self) -> None:
        if self._checkpoint is not None:
            await self._group.call("load", self._checkpoint)
        for update in self._since:
            await self._hold_to_published(update.step)
            await self._call_all(update.before)
            await self._group.receive_batch(update.path)
            await self._group.update(update.step)
            await self._call_all(update.calls)
        await self._call_all(self._before)
        await self._hold_to_published(await self._group.call("version"))
        if self._received is not None:
            assert self._spool is not None
            await self._group.receive_batch(self._spool.batch_path(self._received))

    async def _hold_to_published(self, version: int) -> None:
        """Compare the weights with those published last, if these were of this version."""
        if self._published is None or self._published.version != version:
            return
        if (await self._publish()).digest != self._published.digest:
            raise WorkerError(
                f"The new learner's weights of version {version} are not those that the lost one published, "
                f"which the engines hold: its updates do not repeat exactly on this hardware; go on from the checkpoint."
            )

    async def _call_all(self, calls: Calls) -> None:
        for method, args in calls:
            await self._group.call(method, *args)

    async def _publish(self) -> PublishedWeights:
        if not self._bucket_count:
            self._bucket_count = await self._group.call("bucket_count")
        return await self._group.publish(self._bucket_count)

    def _tell(self, kind: Any, text: str) -> None:
        place = self._group.first_place
        self._context.events.tell(Event(kind=kind, text=text, role="learner", number=0, **place))


def _now() -> float:
    return asyncio.get_running_loop().time()
