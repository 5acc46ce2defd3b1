"""The control loop, the same for synchronous and asynchronous training: three coroutines that meet in a queue each.

    admit    prompts -> RolloutPool, while the bound on staleness allows
    collect  RolloutPool -> ScoringPool -> ExperienceBuffer, group by group
    learn    ExperienceBuffer -> Trainer -> weights, version v -> RolloutPool

None of them ever holds a trajectory: they pass references.
"""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from rayrlhf.actors.calls import MOST_LOSSES, LostObjectError
from rayrlhf.actors.rollout import Drawn, PublishedWeights
from rayrlhf.actors.scoring import ScoringInfo
from rayrlhf.config import RunConfig
from rayrlhf.errors import LedgerError, ScoringError
from rayrlhf.experience.admission import Admission, Reserve
from rayrlhf.experience.buffer import ExperienceBuffer, ScoredGroup
from rayrlhf.experience.ledger import Ledger
from rayrlhf.telemetry.events import Event
from rayrlhf.types import Group, GroupId, PolicyVersion, SampleId


class Groups(Protocol):
    """Where groups come from."""

    def group(self, group_id: GroupId) -> Group: ...


class Rollout(Protocol):
    """What the loop asks of the rollout pool."""

    async def room(self) -> None: ...

    def submit(self, groups: Sequence[Group]) -> None: ...

    async def finished(self) -> Drawn: ...

    def finished_too(self) -> list[Drawn]: ...

    async def publish(self, weights: PublishedWeights) -> None: ...

    async def settled(self) -> None: ...

    def tokens_per_second(self) -> float: ...


class Scoring(Protocol):
    """What the loop asks of the scoring pool."""

    async def room(self) -> None: ...

    async def score(self, drawn: Sequence[Drawn]) -> tuple[Any, ScoringInfo]: ...


class Learner(Protocol):
    """What the loop asks of the learner."""

    async def receive(self, step: int, batch: Sequence[ScoredGroup]) -> dict[str, float]:
        """Bring the learner a batch; LostObjectError, with nothing begun, where a part of it is lost."""
        ...

    async def update(self, step: int) -> dict[str, float]: ...

    async def publish(self) -> PublishedWeights: ...


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one turn of the loop has done."""

    step: int
    metrics: dict[str, float]
    tokens: int
    begun: float
    """When the learner began to wait for the batch, by the loop's clock."""
    learning: float
    """Seconds of the update itself."""


After = Callable[[Update], Awaitable[bool]]
"""Evaluates, saves and tells after an update; whether the loop goes on."""


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Have the cyclic garbage collector look less often, within the block.

    What is in flight lives long and holds no cycles: at Python's own thresholds most of a large run's driver time would go
    into looking through it.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 10, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@dataclass(frozen=True)
class _Lease:
    """A group on its way to the learner."""

    sample_ids: tuple[SampleId, ...]
    at: float


@dataclass(frozen=True)
class _Switch:
    """Something to be done after `step` updates, with nothing in flight."""

    step: int
    act: Callable[[], Awaitable[None]]


class ControlLoop:
    """Trains the steps that are left, each group once."""

    def __init__(
        self,
        config: RunConfig,
        *,
        groups: Groups,
        rollout: Rollout,
        scoring: Scoring,
        learner: Learner,
        after: After,
        tell: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._groups = groups
        self._rollout = rollout
        self._scoring = scoring
        self._learner = learner
        self._after = after
        self._tell = tell
        self.ledger = Ledger(groups_per_step=config.ppo.prompts_per_step)
        self.admission = Admission(groups_per_step=config.ppo.prompts_per_step, max_staleness=config.ppo.max_staleness)
        self._reserve = Reserve(groups_per_step=config.ppo.prompts_per_step, max_staleness=config.ppo.max_staleness)
        self.buffer = ExperienceBuffer()
        self.version: PolicyVersion = 0
        self.learner_does = "nothing yet"
        """For those who watch."""
        self.learner_waits: bool | None = None
        """Whether the learner lacks a batch; None while there is something else to do than to train."""
        self.training = 0
        """Groups of the update under way."""
        self._trained = asyncio.Condition()
        """Notified when a batch that is taken or an update has made room."""
        self._leases: dict[GroupId, _Lease] = {}
        self._next_step = 0
        """The first step of the stream of which nothing is leased yet."""
        self._switch: _Switch | None = None
        self._missing: Counter[int] = Counter()
        self._redrawn: Counter[GroupId] = Counter()

    async def run(self, last: int) -> None:
        """Train until version `last`, or until `after` has seen enough."""
        with _rare_collections():
            await self._run(last)

    async def _run(self, last: int) -> None:
        async with asyncio.TaskGroup() as beside:
            others = [beside.create_task(self._admit(last)), beside.create_task(self._collect())]
            await self._learn(last)
            for other in others:
                other.cancel()
        self.ledger.abandon()

    async def publish(self, version: PolicyVersion) -> dict[str, float]:
        """Make the learner's weights the pool's; with no staleness allowed, every worker has them then."""
        begun = self._now()
        weights = await self._learner.publish()
        await self._rollout.publish(weights)
        if self._config.ppo.max_staleness == 0:
            await self._rollout.settled()
        self.version = version
        seconds = self._now() - begun
        return {
            "sync/seconds": seconds,
            "time/sync": seconds,
            "sync/bytes": float(weights.total_bytes),
            "sync/version": float(weights.version),
        }

    def lost(self, groups: Sequence[Group]) -> list[Group]:
        """What is to be drawn in place of groups that a lost worker had in work: the same from their prompts on.

        Nothing for those that were given up meanwhile.
        """
        return [self._again(group.group_id) for group in groups if self.ledger.holds(group.group_id)]

    def at_boundary(self, act: Callable[[], Awaitable[None]]) -> int:
        """Have `act` done between two updates, when nothing of a step before is left and nothing of one after has begun.

        Answers with the number of updates before it. LedgerError where another switch waits already.
        """
        if self._switch is not None:
            raise LedgerError(f"Another switch waits for update {self._switch.step} to be done: try again after it.")
        self._switch = _Switch(self.boundary, act)
        return self._switch.step

    @property
    def boundary(self) -> int:
        """Updates after which nothing is left of what has begun until now."""
        return max(self._next_step, self.version)

    @property
    def room(self) -> int:
        """Groups that may be admitted now: none beyond the bound on staleness, and none while enough wait for the learner."""
        return 0 if len(self.buffer) >= self._reserve.groups else max(0, self.admission.room)

    # -- admit ------------------------------------------------------------------------------------------------------

    async def _admit(self, last: int) -> None:
        """Lease groups in the order of the prompts, as the bound allows and workers have room.

        Consumes the prompt stream; unblocked by `learn` and by workers that finish something.
        """
        for group_id in self.ledger.untrained(last):
            async with self._trained:
                await self._trained.wait_for(lambda: self.room > 0)
            await self._rollout.room()
            async with self._trained:  # after the last wait for anything else: a switch may be planned at any time
                await self._trained.wait_for(lambda: not self._held(group_id))  # noqa: B023 - awaited here
            group = self._groups.group(group_id)
            self.ledger.issue(group_id, group.sample_ids)
            self._next_step = max(self._next_step, group_id.step + 1)
            self.admission.admit(group_id, self.version)
            self._leases[group_id] = _Lease(group.sample_ids, self._now())
            self._rollout.submit([group])

    # -- collect ----------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Have finished groups scored, and scored ones buffered, as they come.

        Consumes what workers finish, all that is there whenever a scoring worker has room; ended by `run`.
        """
        async with asyncio.TaskGroup() as scoring:
            while True:
                first = await self._rollout.finished()
                drawn_at = self._now()
                await self._scoring.room()
                scoring.create_task(self._score([first, *self._rollout.finished_too()], drawn_at))

    async def _score(self, drawn: Sequence[Drawn], drawn_at: float) -> None:
        try:
            ref, info = await self._scoring.score(drawn)
        except LostObjectError as loss:
            lost = [part for part in drawn if part.ref.hex() == loss.object_id] or drawn
            self._draw_again([group.group_id for part in lost for group in part.groups], loss)
            if kept := [part for part in drawn if part not in lost]:
                await self._score(kept, drawn_at)
            return
        scored = set(info.sample_ids)
        missing = dict(info.missing)
        groups = []
        for finished in (group for part in drawn for group in part.groups):
            ids = self._leases[finished.group_id].sample_ids
            own = tuple(sample_id for sample_id in ids if sample_id in scored)
            if not self.ledger.accept(finished.group_id, ids):
                raise LedgerError(f"A second copy of group {finished.group_id} came back from scoring.")
            self._drop(finished.group_id, {i: missing[i] for i in ids if i in missing})
            self.admission.finish(finished.group_id, finished.min_version)
            groups.append(
                ScoredGroup(
                    group_id=finished.group_id,
                    sample_ids=own,
                    ref=ref,
                    tokens=finished.tokens,
                    drawn_at=drawn_at,
                    scored_at=self._now(),
                )
            )
        await self.buffer.put(groups)

    def _drop(self, group: GroupId, missing: dict[SampleId, str]) -> None:
        """A response without a score is never trained; too many of them in one step are a failure with a cause."""
        if not missing:
            return
        ppo = self._config.ppo
        self.ledger.drop(group, missing)
        self._missing[group.step] += len(missing)
        if self._missing[group.step] > ppo.max_missing * ppo.samples_per_step:
            raise ScoringError(
                f"{self._missing[group.step]} of the {ppo.samples_per_step} responses of step {group.step} have no score "
                f"(ppo.max_missing={ppo.max_missing:g}); the first because {next(iter(missing.values()))}."
            )

    def _draw_again(self, groups: Sequence[GroupId], loss: LostObjectError) -> None:
        """Groups whose value is lost, drawn and scored once more under the same names and seeds."""
        self._redrawn.update(groups)
        if any(self._redrawn[group] > MOST_LOSSES for group in groups):
            raise loss
        again = [self._again(group) for group in groups]
        samples = sum(len(group.requests) for group in again)
        self._tell(Event(kind="loss", text=f"{loss} {samples} samples are drawn again."))
        self._rollout.submit(again)

    def _again(self, group_id: GroupId) -> Group:
        self.ledger.reissue(group_id)
        self.admission.admit(group_id, self.version)
        return self._groups.group(group_id)

    # -- learn ------------------------------------------------------------------------------------------------------

    async def _learn(self, last: int) -> None:
        """Train each batch once and publish the new version.

        Consumes the buffer; waits for the groups of a batch, unblocked by `collect`.
        """
        first = self.version
        for step in range(first, last):
            await self._switch_if_due(step)
            begun = self._now()
            self.learner_does = f"waits for the batch of update {step + 1}"
            self.learner_waits = True
            batch, recorded, waited = await self._batch(step)
            taken = self._now()
            await self._let_in()
            self.learner_does = f"makes update {step + 1}"
            self.learner_waits, self.training = False, len(batch)
            metrics = recorded | await self._learner.update(step)
            learning = self._now() - taken
            if step > first:  # whose batch is waited for in any case
                self._reserve.follow(waited=waited, learning=learning)
            for group in batch:
                self.ledger.train(group.group_id, group.sample_ids)
            self.admission.train([group.group_id for group in batch], step)
            self.training = 0
            metrics |= self._phases(batch, taken) | {"time/learner": learning} | await self.publish(step + 1)
            await self._let_in()
            self.learner_does = f"waits for what follows update {step + 1}"
            self.learner_waits = None
            tokens = sum(group.tokens for group in batch)
            update = Update(step=step, metrics=metrics, tokens=tokens, begun=begun, learning=learning)
            if not await self._after(update):
                return

    async def _let_in(self) -> None:
        """Have `admit` look again at what it waits for."""
        async with self._trained:
            self._trained.notify_all()

    def _held(self, group_id: GroupId) -> bool:
        return self._switch is not None and group_id.step >= self._switch.step

    async def _switch_if_due(self, step: int) -> None:
        if self._switch is not None and step >= self._switch.step:
            self.learner_does = "waits for a switch to be done"
            await self._switch.act()
            self._switch = None
            await self._let_in()

    async def _batch(self, step: int) -> tuple[list[ScoredGroup], dict[str, float], float]:
        """The batch of the next update, held by the learner, and the seconds until it was there.

        What is lost until then is drawn again.
        """
        timeout = self._config.rollout.call_timeout + self._config.scoring.call_timeout
        begun = self._now()
        while True:
            batch = await self.buffer.take(
                partial(self.admission.choose, update=step), timeout, partial(self.admission.late, update=step)
            )
            waited = self._now() - begun
            try:
                return batch, await self._learner.receive(step, batch), waited
            except LostObjectError as loss:
                lost = [group for group in batch if group.ref.hex() == loss.object_id] or batch
                self._draw_again([group.group_id for group in lost], loss)
                await self.buffer.put([group for group in batch if group not in lost])

    def _phases(self, batch: Sequence[ScoredGroup], taken: float) -> dict[str, float]:
        drawn = max(group.drawn_at for group in batch)
        leased = min(self._leases.pop(group.group_id).at for group in batch)
        return {
            "time/rollout": drawn - leased,
            "time/scoring": max(0.0, max(group.scored_at for group in batch) - drawn),
            "time/buffered": sum(taken - group.scored_at for group in batch) / len(batch),
            "perf/rollout_tokens_per_second": self._rollout.tokens_per_second(),
        }

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
