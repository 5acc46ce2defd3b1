"""An engine in continuous service: groups come and go between its steps, and so do new weights."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rayrlhf.config import OnUpdate
from rayrlhf.errors import WorkerError
from rayrlhf.types import Group, GroupId, PolicyVersion, RolloutRequest, SampleId, Trajectory, WeightManifest


class Engine(Protocol):
    """What a stream asks of an engine; every call comes from the stream's own thread."""

    @property
    def version(self) -> PolicyVersion: ...

    @property
    def running(self) -> int: ...

    def check(self, request: RolloutRequest) -> None: ...

    def add(self, request: RolloutRequest) -> None: ...

    def step(self) -> list[Trajectory]: ...

    def withdraw(self) -> list[RolloutRequest]: ...

    def apply_weights(
        self, manifest: WeightManifest, buckets: list[np.ndarray], *, recompute: bool = True
    ) -> PolicyVersion: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class FinishedGroup:
    """A group that is drawn to the end; its trajectories come beside it."""

    group_id: GroupId
    samples: int
    tokens: int
    min_version: PolicyVersion


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stream is."""

    version: PolicyVersion
    tokens: int
    """Response tokens drawn since the start, of unfinished responses too: one a step for each sample in work."""
    steps: int
    """Decode steps and weight updates since the start: where there is work, it grows."""
    samples: int
    """Samples it holds unfinished."""
    taken: int
    """Samples it has taken into work since the start."""


class RolloutStream:
    """Steps an engine in a thread of its own for as long as there is work.

    Other threads hand groups in, take finished ones out and bring new weights; all of it happens between two steps. A
    failure of the engine ends the thread, and is raised by every call from then on.
    """

    def __init__(self, make: Callable[[], Engine], *, max_running: int, on_update: OnUpdate) -> None:
        self._make = make
        self._max_running = max_running
        self._on_update = on_update
        self._changed = threading.Condition()
        self._commands: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._waiting: deque[RolloutRequest] = deque()
        self._open: dict[GroupId, _OpenGroup] = {}
        self._group_of: dict[SampleId, GroupId] = {}
        self._probes: dict[SampleId, Future[Trajectory]] = {}
        self._finished: list[tuple[FinishedGroup, list[Trajectory]]] = []
        self._failure: BaseException | None = None
        self._stopping = False
        self._held = False
        """Whether nothing is taken into work, because new weights wait for what is in work to end."""
        self._version: PolicyVersion = 0
        self._samples = self._running = self._taken = self._tokens = self._steps = 0
        self._told_of_room = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Make the engine, in the thread that steps it; raises what making it raises."""
        self._thread.start()
        self._ready.result()

    def submit(self, groups: Sequence[Group]) -> None:
        """Take groups into work; DataError, before any of them is, for a prompt that cannot be drawn from."""
        self._do(lambda engine: self._take(engine, groups))

    def collect(self, wait: float) -> tuple[list[Trajectory], list[FinishedGroup], Progress]:
        """What is finished since the last call, of one stage; waits at most `wait` seconds for something.

        It answers as well when nothing waits for a place in the engine any more, so that another group can come before
        a place is empty: one long response must not keep the places of the others so.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure or self._has_room_to_tell(), wait)
            self._raise_failure()
            self._told_of_room = self._samples <= self._max_running
            stage = self._finished[0][0].group_id.stage if self._finished else None
            finished = [pair for pair in self._finished if pair[0].group_id.stage == stage]
            self._finished = [pair for pair in self._finished if pair[0].group_id.stage != stage]
            progress = Progress(
                version=self._version,
                tokens=self._tokens,
                steps=self._steps,
                samples=self._samples,
                taken=self._taken,
            )
        return [t for _, drawn in finished for t in drawn], [group for group, _ in finished], progress

    def apply_weights(self, manifest: WeightManifest, buckets: list[np.ndarray]) -> PolicyVersion:
        """Bring a version in force between two steps, or, with drain, after the samples in work; the version then."""
        if self._on_update == "drain":
            self._drain()
        return self._do(lambda engine: self._apply(engine, manifest, buckets))

    def probe(self, request: RolloutRequest) -> Trajectory:
        """Draw one sample beside what is in work, ahead of what waits; it belongs to nobody's account."""
        drawn: Future[Trajectory] = Future()
        self._do(lambda engine: self._begin_probe(engine, request, drawn))
        return drawn.result()

    def withdraw(self) -> list[Group]:
        """Give every unfinished group away, with what is drawn of it."""
        given: list[Group] = self._do(self._give_away)
        return given

    def stop(self) -> None:
        """End the thread and release the engine."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    # -- in the calling threads -------------------------------------------------------------------------------------

    def _do(self, command: Callable[[Engine], Any]) -> Any:
        future: Future[Any] = Future()
        with self._changed:
            self._raise_failure()
            self._commands.append((command, future))
            self._changed.notify_all()
        return future.result()

    def _has_room_to_tell(self) -> bool:
        return not self._told_of_room and 0 < self._samples <= self._max_running

    def _drain(self) -> None:
        """Wait until nothing is in work; nothing is taken into work from then on until new weights are in force."""
        with self._changed:
            self._held = True
            self._changed.wait_for(lambda: self._failure or not self._running)
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # -- in the engine's thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            engine = self._make()
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller of `start`
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while self._await_work():
                self._carry_out(engine)
                self._fill(engine)
                if engine.running:
                    self._keep(engine.step(), engine)
            self._fail(WorkerError("The engine's service was ended."))
        except BaseException as error:  # noqa: BLE001 - every caller hears of it
            self._fail(error)
        finally:
            engine.shutdown()

    def _await_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._commands or self._running or (self._waiting and not self._held)
            )
            return not self._stopping

    def _carry_out(self, engine: Engine) -> None:
        while self._commands:
            command, future = self._commands.popleft()
            try:
                future.set_result(command(engine))
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

    def _fill(self, engine: Engine) -> None:
        while self._waiting and not self._held and engine.running < self._max_running:
            engine.add(self._waiting.popleft())
        self._running = engine.running

    def _take(self, engine: Engine, groups: Sequence[Group]) -> None:
        for group in groups:
            for request in group.requests:
                engine.check(request)
        for group in groups:
            self._open[group.group_id] = _OpenGroup(group)
            self._group_of |= {request.sample_id: group.group_id for request in group.requests}
            self._waiting.extend(group.requests)
        with self._changed:
            taken = sum(len(group.requests) for group in groups)
            self._samples += taken
            self._taken += taken
            self._told_of_room = False

    def _begin_probe(self, engine: Engine, request: RolloutRequest, drawn: "Future[Trajectory]") -> None:
        engine.add(request)
        self._probes[request.sample_id] = drawn
        self._running = engine.running

    def _keep(self, drawn: list[Trajectory], engine: Engine) -> None:
        with self._changed:
            self._steps += 1
            self._tokens += engine.running + len(drawn)
            self._running = engine.running
            for trajectory in drawn:
                if trajectory.sample_id in self._probes:
                    self._probes.pop(trajectory.sample_id).set_result(trajectory)
                    continue
                self._samples -= 1
                group = self._open[self._group_of.pop(trajectory.sample_id)]
                group.drawn.append(trajectory)
                if len(group.drawn) == len(group.group.sample_ids):
                    del self._open[group.group.group_id]
                    self._finished.append(group.finished())
            if self._finished or not self._running or self._has_room_to_tell():
                self._changed.notify_all()

    def _apply(self, engine: Engine, manifest: WeightManifest, buckets: list[np.ndarray]) -> PolicyVersion:
        version = engine.apply_weights(manifest, buckets, recompute=self._on_update != "keep")
        with self._changed:
            self._steps += 1
            self._held = False
            self._version = version
        return version

    def _give_away(self, engine: Engine) -> list[Group]:
        left = {request.sample_id: request for request in (*engine.withdraw(), *self._waiting)}
        for sample_id in self._probes.keys() & left.keys():
            self._probes.pop(sample_id).set_exception(WorkerError("The worker gives its work away."))
        given = [
            Group(
                group_id=group.group.group_id,
                requests=tuple(left[r.sample_id] for r in group.group.requests if r.sample_id in left),
                drawn=tuple(group.drawn),
            )
            for group in self._open.values()
        ]
        self._waiting.clear()
        self._open.clear()
        self._group_of.clear()
        with self._changed:
            self._samples = self._running = 0
        return given

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            for future in [*(future for _, future in self._commands), *self._probes.values()]:
                future.set_exception(error)
            self._commands.clear()
            self._probes.clear()
            self._changed.notify_all()


class _OpenGroup:
    """A group in work, and what is drawn of it."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.drawn = list(group.drawn)

    def finished(self) -> tuple[FinishedGroup, list[Trajectory]]:
        drawn = sorted(self.drawn, key=lambda t: t.sample_id)
        return FinishedGroup(
            group_id=self.group.group_id,
            samples=len(drawn),
            tokens=sum(len(t.response_ids) for t in drawn),
            min_version=min(t.min_version for t in drawn),
        ), drawn
