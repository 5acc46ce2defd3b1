"""The rollout workers as one: groups are handed out, versions followed, and what the dead had in work taken back."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rayrlhf.actors import placement
from rayrlhf.actors.calls import ActorLostError, LostObjectError, resolve, together
from rayrlhf.actors.pool import ReplicaPool, StalledError
from rayrlhf.actors.replica import Replica, State
from rayrlhf.actors.routing import AS_LOADED, RolloutQueue
from rayrlhf.actors.stacks import stacks_file
from rayrlhf.config import RunConfig
from rayrlhf.errors import DeadlineError, WeightSyncError
from rayrlhf.rollout.parity import difference
from rayrlhf.rollout.stream import FinishedGroup, Progress
from rayrlhf.telemetry.events import Event
from rayrlhf.types import Group, PolicyVersion, RolloutRequest, SampleId

_TOGETHER = 16
"""Answers of workers that are scored in one call, at most."""
_POLL_SECONDS = 2.0
"""A worker answers its driver at least this often, whether anything is finished or not."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a new worker is held against the others with: the first of some samples that both draw alike decides."""

    requests: tuple[RolloutRequest, ...]
    tolerance: float
    """Nats between the log-probs of a token, median over the response."""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """References to one published version, owned by the driver."""

    version: PolicyVersion
    total_bytes: int
    digest: str
    """Of all tensors' checksums."""
    manifest: Any
    buckets: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Finished groups of one stage; `ref` is the list of their trajectories, group after group."""

    ref: Any
    groups: tuple[FinishedGroup, ...]

    @property
    def min_version(self) -> PolicyVersion:
        """Of their oldest token."""
        return min(group.min_version for group in self.groups)


class RolloutPool:
    """The rollout workers as one: hands groups out, follows versions, takes back what the dead had in work."""

    def __init__(
        self,
        config: RunConfig,
        *,
        spawn: Callable[[int], Any],
        republish: Callable[[], Awaitable[PublishedWeights]],
        on_loss: Callable[[Sequence[Group]], Sequence[Group]],
        tell: Callable[[Event], None],
        probe: Probe | None = None,
        end: Callable[[Any], None] = placement.end,
    ) -> None:
        """`republish` makes the current version's buckets anew, where they are lost before a worker has them.

        `on_loss` hears of the groups of the ppo stage that a lost worker had in work, and answers with what is to be drawn
        in their place.
        """
        self._config = config.rollout
        self._republish = republish
        self._on_loss = on_loss
        self._probe = probe
        self._published: PublishedWeights | None = None
        self._published_anew = asyncio.Condition()
        self._queue = RolloutQueue(depth=config.rollout.max_num_seqs + 1)
        self._moved = asyncio.Condition()
        """Notified when a worker has finished something, or loaded new weights."""
        self._replicas: dict[int, Replica] = {}
        """Those that serve, by number."""
        self._finished: asyncio.Queue[Drawn] = asyncio.Queue()
        self._asked: dict[str, asyncio.Queue[Drawn]] = {}
        self._running: set[asyncio.Future[None]] = set()
        # A moved response goes on with other random numbers: where runs are to be repeated exactly, it ends where it is.
        self._moves = config.ppo.max_staleness > 0
        self.pool = ReplicaPool(
            "rollout",
            config.rollout,
            size=config.rollout.workers,
            spawn=spawn,
            end=end,
            bring_up=self._catch_up,
            serve=self._serve,
            on_drain=lambda replica: self._queue.retire(replica.number),
            on_loss=self._lose,
            stacks=lambda number: stacks_file(config, "rollout", number),
            tell=tell,
        )

    # -- what the loop asks of it -----------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until a worker would begin another group at once."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._queue.room)

    def submit(self, groups: Sequence[Group]) -> None:
        """Have groups drawn by workers of the published version."""
        self._queue.add(groups)
        self._hand_out()

    async def finished(self) -> Drawn:
        """The next groups of the ppo stage that are drawn; waits for them as long as it takes."""
        return await self._finished.get()

    def finished_too(self) -> list[Drawn]:
        """What else of the ppo stage is drawn already, up to what one request for scores should hold."""
        drawn: list[Drawn] = []
        while len(drawn) < _TOGETHER and not self._finished.empty():
            drawn.append(self._finished.get_nowait())
        return drawn

    async def generate(self, groups: Sequence[Group]) -> list[Drawn]:
        """Draw groups of another stage before any other work; all under the published version, until another comes."""
        stage = groups[0].group_id.stage
        self._asked[stage] = asyncio.Queue()
        try:
            self.submit(groups)
            parts: list[Drawn] = []
            while sum(len(part.groups) for part in parts) < len(groups):
                what = f"{len(groups)} groups of {stage} to be drawn"
                try:
                    async with asyncio.timeout(self._config.call_timeout):
                        parts.append(await self._asked[stage].get())
                except TimeoutError:
                    raise DeadlineError(f"Waited {self._config.call_timeout:.0f} s for {what}, in vain.") from None
            return parts
        finally:
            del self._asked[stage]

    async def publish(self, weights: PublishedWeights) -> None:
        """Have every worker load `weights` between two of its steps; returns at once."""
        self._queue.publish(weights.version)
        async with self._published_anew:
            self._published = weights
            self._published_anew.notify_all()

    async def settled(self) -> None:
        """Wait until every serving worker has acknowledged the published version."""
        async with self._moved:
            try:
                async with asyncio.timeout(self._config.call_timeout):
                    await self._moved.wait_for(lambda: self._queue.workers and not self._queue.behind)
            except TimeoutError:
                late = f"rollout worker {min(self._queue.behind)}" if self._queue.behind else "any rollout worker"
                raise DeadlineError(
                    f"Waited {self._config.call_timeout:.0f} s for {late} to load version {self._version}, in vain."
                ) from None

    def tokens_per_second(self) -> float:
        """Response tokens that all workers together draw in a second of drawing, since the last call."""
        return self._queue.tokens_per_second()

    @property
    def waiting(self) -> int:
        """Groups that no worker has yet."""
        return self._queue.waiting

    def work_of(self, number: int) -> dict[str, Any]:
        """What a worker has in work, and how fast it draws."""
        return self._queue.work_of(number)

    # -- one worker's service ---------------------------------------------------------------------------------------

    @property
    def _version(self) -> PolicyVersion:
        return AS_LOADED if self._published is None else self._published.version

    async def _catch_up(self, replica: Replica) -> None:
        """Bring a new worker to the published version, whatever is published meanwhile."""
        replica.version = AS_LOADED
        while self._published is not None and replica.version != self._version:
            await self._load(replica)
        for peer in self.pool.serving:
            if self._probe is None:
                return
            try:
                await self._agree(replica, peer, self._probe)
                return
            except ActorLostError:
                if not peer.loss.done() and peer in self.pool.replicas:
                    raise  # It was not the peer that is lost.

    async def _agree(self, replica: Replica, peer: Replica, probe: Probe) -> None:
        """Hold a new worker to one that serves, on the same sample under the same weights; StalledError if it differs."""
        for number, request in enumerate(probe.requests):
            named = dataclasses.replace(request, sample_id=SampleId("probe", replica.number, number, 0))
            drawn = [(r, r.handle.probe.remote(named)) for r in (replica, peer)]
            own, theirs = await together(
                *(resolve(ref, what=self.pool.name(r, "probe"), timeout=self._config.call_timeout) for r, ref in drawn)
            )
            gap = difference(own, theirs)
            if gap is None:
                continue  # Weights came in between, or rounding has led them to other tokens.
            if gap > probe.tolerance:
                raise StalledError(
                    f"{self.pool.name(replica, 'probe')} differs from rollout worker {peer.number} by {gap:.2g} nats a token "
                    f"under the same weights, {probe.tolerance:.2g} being allowed."
                )
            return

    async def _serve(self, replica: Replica) -> None:
        assert replica.version is not None
        self._replicas[replica.number] = replica
        self._queue.join(replica.number, replica.version)
        following, drawing = (asyncio.ensure_future(work(replica)) for work in (self._follow, self._draw))
        try:
            await self._tell_moved()
            await asyncio.wait({following, drawing}, return_when=asyncio.FIRST_COMPLETED)
            await (following if following.done() else drawing)
            self._queue.leave(replica.number)
            await self._tell_moved()
        finally:
            following.cancel()
            drawing.cancel()
            del self._replicas[replica.number]

    async def _draw(self, replica: Replica) -> None:
        """Take finished groups from a worker until it has drained; StalledError where it makes no progress."""
        loop = asyncio.get_running_loop()
        moved_at, moved = loop.time(), -1
        while replica.state is State.SERVING or self._queue.load(replica.number):
            ref, (groups, progress) = await self._collect(replica)
            had_room = self._queue.room
            self._queue.progress(replica.number, progress, loop.time())
            if progress.steps != moved or not progress.samples:
                moved_at, moved = loop.time(), progress.steps
            elif loop.time() - moved_at > self._config.stall_timeout:
                raise StalledError(
                    f"{self.pool.name(replica, 'drawing')} makes no progress: {progress.samples} samples in work, and no token "
                    f"for {loop.time() - moved_at:.0f} s."
                )
            if groups:
                self._queue.take(replica.number, groups)
                drawn = Drawn(ref=ref, groups=tuple(groups))
                stage = groups[0].group_id.stage
                await (self._finished if stage == "ppo" else self._asked[stage]).put(drawn)
            if replica.state is State.DRAINING and self._moves and self._queue.load(replica.number):
                await self._move(replica)
            if groups or self._queue.room != had_room or self._queue.waiting:
                await self._tell_moved()

    async def _tell_moved(self) -> None:
        self._hand_out()
        async with self._moved:
            self._moved.notify_all()

    async def _move(self, replica: Replica) -> None:
        """Take what a worker has in work away, with what is drawn of it, for others to go on with."""
        what = self.pool.name(replica, "giving its work away")
        groups = await resolve(replica.handle.withdraw.remote(), what=what, timeout=self._config.stall_timeout)
        self._queue.move(replica.number, groups)
        self._hand_out()

    async def _collect(self, replica: Replica) -> tuple[Any, tuple[list[FinishedGroup], Progress]]:
        refs = replica.handle.collect.options(num_returns=2).remote(_POLL_SECONDS)
        try:
            timeout = _POLL_SECONDS + self._config.stall_timeout
            return refs[0], await resolve(refs[1], what=self.pool.name(replica, "drawing"), timeout=timeout)
        except DeadlineError as silence:
            raise StalledError(f"{silence} Its process does not answer.") from silence
        except LostObjectError as loss:
            raise ActorLostError(f"{loss} What it had finished is gone.") from loss

    async def _follow(self, replica: Replica) -> None:
        """Load every version that is published."""
        while True:
            async with self._published_anew:
                await self._published_anew.wait_for(lambda: replica.version != self._version)
            await self._load(replica)
            assert replica.version is not None
            self._queue.acknowledge(replica.number, replica.version)
            await self._tell_moved()

    async def _load(self, replica: Replica) -> None:
        weights = self._published
        assert weights is not None
        what = f"rollout worker {replica.number} to load version {weights.version}"
        try:
            ref = replica.handle.apply_weights.remote(weights.manifest, *weights.buckets)
            acknowledged = await resolve(ref, what=what, timeout=self._config.call_timeout)
        except LostObjectError:
            if self._published is weights:
                self._published = await self._republish()
            return
        if acknowledged != weights.version:
            raise WeightSyncError(
                f"Rollout worker {replica.number} acknowledged version {acknowledged} instead of {weights.version}."
            )
        replica.version = weights.version

    def _hand_out(self) -> None:
        """Give waiting groups to the workers with the least work, as long as they have room."""
        for number, groups in self._queue.hand_out().items():
            self._keep(asyncio.ensure_future(self._submit(self._replicas[number], groups)))

    def _keep(self, task: asyncio.Future[None]) -> None:
        """A task that nobody awaits lives only as long as somebody knows it."""
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _submit(self, replica: Replica, groups: list[Group]) -> None:
        try:
            ref = replica.handle.submit.remote(groups)
            what = self.pool.name(replica, "taking groups")
            await resolve(ref, what=what, timeout=self._config.stall_timeout, unless=replica.loss)
        except DeadlineError as silence:
            replica.lose(StalledError(f"{silence} Its process does not answer."))
        except Exception as error:  # noqa: BLE001 - the worker's life ends with it, and it is told there
            replica.lose(error)

    def _lose(self, replica: Replica) -> str:
        """Put what a lost worker had in work back into the queue."""
        groups = self._queue.leave(replica.number)
        again = self._on_loss([group for group in groups if group.group_id.stage == "ppo"])
        others = [group for group in groups if group.group_id.stage in self._asked]
        self._queue.add([*again, *others])
        self._keep(asyncio.ensure_future(self._tell_moved()))
        samples = sum(len(group.requests) for group in [*again, *others])
        return f" {samples} samples are drawn again." if samples else ""
