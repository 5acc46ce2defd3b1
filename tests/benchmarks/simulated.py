"""Workers that sleep instead of computing, and an event loop whose clock jumps: the real control loop at any size.

Everything that decides is the product's: control loop, pools, queue, ledger, buffer, admission, autoscaler. What computes
is simulated: a rollout worker is a number of slots that each draw a token every `token_seconds`.
"""

import asyncio
import heapq
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from rayrlhf.actors.calls import alongside, together
from rayrlhf.actors.rollout import Drawn, PublishedWeights, RolloutPool
from rayrlhf.actors.scoring import ScoringInfo, ScoringPool
from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RunConfig
from rayrlhf.experience.buffer import ScoredGroup
from rayrlhf.pipelines.loop import ControlLoop, Update
from rayrlhf.rollout.stream import FinishedGroup, Progress
from rayrlhf.telemetry.events import Event
from rayrlhf.types import Group, GroupId, RolloutRequest, SampleId

Result = TypeVar("Result")
_PROMPT = np.zeros(1, dtype=np.int32)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is left to do now, its clock jumps to what is next."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = 0.0

    def time(self) -> float:
        return self._clock

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:  # type: ignore[attr-defined]
            heapq.heappop(self._scheduled)._scheduled = False  # type: ignore[attr-defined]
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)  # type: ignore[attr-defined, has-type]
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._clock = max(self._clock, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run_virtually(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a clock that jumps."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
        asyncio.set_event_loop(None)


class Ref:
    """What a simulated call answers with."""

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        self._future = future

    def future(self) -> "asyncio.Future[Any]":
        """One that may be cancelled, as Ray's may: the call goes on."""
        return asyncio.shield(self._future)

    def hex(self) -> str:
        return str(id(self))


class Handle:
    """A simulated actor handle."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def __getattr__(self, method: str) -> "_Method":
        return _Method(getattr(self.worker, method))


class _Method:
    def __init__(self, act: Callable[..., Any], returns: int = 1) -> None:
        self._act, self._returns = act, returns

    def options(self, *, num_returns: int) -> "_Method":
        return _Method(self._act, num_returns)

    def remote(self, *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        light: asyncio.Future[Any] = loop.create_future()
        answer = self._act(*args)

        def give(done: "asyncio.Future[Any]") -> None:
            if not light.done() and not done.cancelled():
                light.set_result(done.result())

        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(give)
        else:
            light.set_result(answer)
        if self._returns == 1:
            return Ref(light)
        return Ref(loop.create_future()), Ref(light)


@dataclass
class Places:
    """What a cluster has room for."""

    free: int
    waiting: list["asyncio.Future[tuple[str, int]]"] = field(default_factory=list)

    def take(self) -> "asyncio.Future[tuple[str, int]]":
        found: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self.waiting.append(found)
        self._serve()
        return found

    def give_back(self) -> None:
        self.free += 1
        self._serve()

    def _serve(self) -> None:
        while self.free and self.waiting:
            future = self.waiting.pop(0)
            if not future.done():
                self.free -= 1
                future.set_result(("node", 1))


class Worker:
    """What every simulated worker has: a place, and a start that takes time."""

    def __init__(self, places: Places, start_seconds: float) -> None:
        self._places = places
        self._start_seconds = start_seconds
        self._placed: asyncio.Future[tuple[str, int]] | None = None
        self.ended = False

    def where(self) -> "asyncio.Future[tuple[str, int]]":
        self._placed = self._places.take()
        return self._placed

    def ready(self) -> "asyncio.Future[None]":
        return after(self._start_seconds, None)

    def end(self) -> None:
        if not self.ended and self._placed is not None:
            self.ended = True
            if self._placed.done() and not self._placed.cancelled():
                self._places.give_back()
            self._placed.cancel()


def after(seconds: float, value: Any) -> "asyncio.Future[Any]":
    """A future that has `value` after some time."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    loop.call_later(seconds, lambda: future.done() or future.set_result(value))
    return future


@dataclass
class _Open:
    """A group in work."""

    group: Group
    begun: float = 0.0
    given_away: bool = False
    drawn: int = 0
    tokens: int = 0


class SimulatedRollout(Worker):
    """Slots that each draw a token every `token_seconds`; a response takes the first slot that is free."""

    def __init__(
        self,
        places: Places,
        start_seconds: float,
        *,
        slots: int,
        token_seconds: float,
        length_of: Callable[[SampleId], int],
    ) -> None:
        super().__init__(places, start_seconds)
        self._slots = [0.0] * slots
        self._token_seconds = token_seconds
        self._length_of = length_of
        self._versions: list[tuple[float, int]] = [(0.0, 0)]
        self._finished: list[FinishedGroup] = []
        self._waiter: asyncio.Future[Any] | None = None
        self._samples = self._taken = self._tokens = self._steps = 0
        self._told_of_room = False
        self._open: dict[GroupId, _Open] = {}

    def submit(self, groups: Sequence[Group]) -> None:
        loop = asyncio.get_running_loop()
        for group in groups:
            begins = []
            opened = _Open(group)
            for request in group.requests:
                begin = max(loop.time(), heapq.heappop(self._slots))
                length = self._length_of(request.sample_id)
                end = begin + length * self._token_seconds
                heapq.heappush(self._slots, end)
                begins.append(begin)
                loop.call_at(end, self._drawn, opened, length)
            self._open[group.group_id] = opened
            opened.begun = min(begins)
            self._samples += len(group.requests)
            self._taken += len(group.requests)
        self._told_of_room = False

    def collect(self, wait: float) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if self._finished or self._room_to_tell():
            self._answer()
        else:
            waiter = self._waiter
            loop.call_later(wait, lambda: waiter.done() or self._answer())
        return self._waiter

    def apply_weights(self, manifest: int, *_: Any) -> int:
        self._versions.append((asyncio.get_running_loop().time(), manifest))
        return manifest

    def withdraw(self) -> list[Group]:
        """Unfinished groups begin anew elsewhere: what is drawn of them is not simulated."""
        for opened in self._open.values():
            opened.given_away = True
        given = [opened.group for opened in self._open.values()]
        self._open.clear()
        self._samples = 0
        return given

    def _drawn(self, group: _Open, length: int) -> None:
        if group.given_away:
            return
        self._samples -= 1
        self._tokens += length
        group.drawn += 1
        group.tokens += length
        if group.drawn == len(group.group.requests):
            del self._open[group.group.group_id]
            self._finished.append(
                FinishedGroup(
                    group_id=group.group.group_id,
                    samples=len(group.group.requests),
                    tokens=group.tokens,
                    min_version=self._version_at(group.begun),
                )
            )
        if self._waiter is not None and not self._waiter.done() and (self._finished or self._room_to_tell()):
            self._answer()

    def _room_to_tell(self) -> bool:
        return not self._told_of_room and 0 < self._samples <= len(self._slots)

    def _version_at(self, begun: float) -> int:
        return next(version for at, version in reversed(self._versions) if at <= begun)

    def _answer(self) -> None:
        assert self._waiter is not None
        self._steps += 1
        self._told_of_room = self._samples <= len(self._slots)
        finished, self._finished = self._finished, []
        progress = Progress(
            version=self._versions[-1][1],
            tokens=self._tokens,
            steps=self._steps,
            samples=self._samples,
            taken=self._taken,
        )
        self._versions = self._versions[-64:]
        self._waiter.set_result((finished, progress))


class SimulatedScoring(Worker):
    """Scores one request after the other, a sample every `sample_seconds`."""

    def __init__(
        self,
        places: Places,
        start_seconds: float,
        *,
        sample_seconds: Callable[[], float],
        samples_of: Callable[[GroupId], tuple[SampleId, ...]],
    ) -> None:
        super().__init__(places, start_seconds)
        self._sample_seconds = sample_seconds
        self._samples_of = samples_of
        self._free_at = 0.0

    def pulse(self) -> int:
        return 0

    def score(self, sizes: Sequence[int], *chunks: Sequence[FinishedGroup]) -> "asyncio.Future[Any]":
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + sum(sizes) * self._sample_seconds()
        ids = tuple(i for groups in chunks for group in groups for i in self._samples_of(group.group_id))
        return after(self._free_at - now, ScoringInfo(sample_ids=ids, missing=(), seconds=0.0))


class Groups:
    """Groups of a stream without prompts."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def ids(self, group_id: GroupId) -> tuple[SampleId, ...]:
        return tuple(SampleId("ppo", group_id.step, group_id.position, k) for k in range(self._samples))

    def group(self, group_id: GroupId) -> Group:
        requests = tuple(RolloutRequest(sample_id=s, prompt_ids=_PROMPT, seed=0) for s in self.ids(group_id))
        return Group(group_id=group_id, requests=requests)


class SimulatedLearner:
    """Takes its time for an update."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.version = 0
        self.busy = 0.0

    async def receive(self, step: int, batch: Sequence[ScoredGroup]) -> dict[str, float]:
        return {}

    async def update(self, step: int) -> dict[str, float]:
        self.busy += self.seconds
        await asyncio.sleep(self.seconds)
        self.version = step + 1
        return {}

    async def publish(self) -> PublishedWeights:
        return PublishedWeights(version=self.version, total_bytes=0, digest="", manifest=self.version, buckets=())


@dataclass(frozen=True)
class Lengths:
    """Response lengths, lognormal with a 99th percentile of ten times the median, a function of the sample's name.

    `drift` multiplies the median from the first step to the last.
    """

    median: float
    drift: float = 1.0
    steps: int = 1

    def __call__(self, sample_id: SampleId) -> int:
        sigma = math.log(10.0) / 2.3263
        unit = np.random.default_rng(derive_seed(0, *sample_id)).standard_normal()
        median = self.median * self.drift ** (sample_id.step / max(1, self.steps - 1))
        return max(1, round(median * math.exp(sigma * unit)))


@dataclass(kw_only=True)
class Simulation:
    """A cluster of sleeping workers under the real control loop."""

    config: RunConfig
    lengths: Callable[[SampleId], int]
    learner_seconds: float
    slots: int = 8
    token_seconds: float = 0.02
    sample_seconds: float = 1.0e-3
    start_seconds: float = 10.0
    places: int | None = None
    """Workers the cluster has room for; None: as many as are asked for."""
    after: Callable[["Simulation", Update], None] | None = None
    beside: Callable[["Simulation"], Coroutine[Any, Any, None]] | None = None
    """Something that runs beside the loop, such as an autoscaler or whoever kills workers."""
    events: list[Event] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    """Of each group that was trained."""
    oldest: dict[GroupId, int] = field(default_factory=dict)
    """Version of the oldest token of each group on its way."""
    makespan: float = 0.0

    def __post_init__(self) -> None:
        ppo = self.config.ppo
        self.groups = Groups(ppo.samples_per_prompt)
        self.learner = SimulatedLearner(self.learner_seconds)

    async def run(self) -> "Simulation":
        """Train to the last update."""
        config = self.config
        places = Places(self.places if self.places is not None else 10**9)
        self.rollout = RolloutPool(
            config,
            spawn=lambda _: Handle(
                SimulatedRollout(
                    places,
                    self.start_seconds,
                    slots=self.slots,
                    token_seconds=self.token_seconds,
                    length_of=self.lengths,
                )
            ),
            republish=self.learner.publish,
            on_loss=lambda groups: self.loop.lost(groups),
            tell=self.events.append,
            end=lambda handle: handle.worker.end(),
        )
        self.scoring = ScoringPool(
            config,
            spawn=lambda _: Handle(
                SimulatedScoring(
                    places,
                    self.start_seconds,
                    sample_seconds=lambda: self.sample_seconds,
                    samples_of=self.groups.ids,
                )
            ),
            tell=self.events.append,
            end=lambda handle: handle.worker.end(),
        )
        self.loop = ControlLoop(
            config,
            groups=self.groups,
            rollout=self.rollout,
            scoring=_Values(self),
            learner=_Watched(self),
            after=self._after,
            tell=self.events.append,
        )
        services = [self.rollout.pool.run(), self.scoring.pool.run()]
        if self.beside is not None:
            services.append(self.beside(self))
        await alongside(self._train(), *services)
        return self

    async def _train(self) -> None:
        await asyncio.gather(self.rollout.pool.ready(), self.scoring.pool.ready())
        await self.loop.publish(0)
        begun = asyncio.get_running_loop().time()
        await together(self.loop.run(self.config.ppo.updates))
        self.makespan = asyncio.get_running_loop().time() - begun

    async def _after(self, update: Update) -> bool:
        if self.after is not None:
            self.after(self, update)
        return True


class _Values:
    """The scoring pool, asked with what was drawn in place of a reference to it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    async def room(self) -> None:
        await self._simulation.scoring.room()

    async def score(self, drawn: Sequence[Drawn]) -> tuple[Any, ScoringInfo]:
        self._simulation.oldest |= {group.group_id: group.min_version for part in drawn for group in part.groups}
        return await self._simulation.scoring.score([Drawn(ref=part.groups, groups=part.groups) for part in drawn])


class _Watched:
    """The learner, with an eye on the staleness of what it is given."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    async def receive(self, step: int, batch: Sequence[ScoredGroup]) -> dict[str, float]:
        oldest = self._simulation.oldest
        self._simulation.staleness += [step - oldest.pop(group.group_id) for group in batch]
        return {}

    async def update(self, step: int) -> dict[str, float]:
        return await self._simulation.learner.update(step)

    async def publish(self) -> PublishedWeights:
        return await self._simulation.learner.publish()
