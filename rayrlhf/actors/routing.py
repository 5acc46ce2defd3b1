"""Which worker draws which group: shortest work first, queues just deep enough, oldest prompts before younger ones."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rayrlhf.rollout.stream import FinishedGroup, Progress
from rayrlhf.types import Group, GroupId, PolicyVersion

AS_LOADED: PolicyVersion = -1
"""The version of a worker that has the weights of the policy's directory, and none from the learner yet."""
_FIRST_LENGTH = 64.0
"""Tokens a response is taken to have before any is known."""
_NEWEST = 0.05
"""Weight of a newly finished response in the running mean length."""


@dataclass
class _Work:
    """What one worker has in work."""

    version: PolicyVersion
    groups: dict[GroupId, Group] = field(default_factory=dict)
    samples: int = 0
    """Unfinished ones, as far as it has told, and those it has been given since."""
    given: int = 0
    """Samples it has been given since it joined."""
    drawn: int = 0
    """Tokens it has drawn since it joined."""
    finished: int = 0
    """Of these, tokens of groups it has handed over."""
    stamp: int = 0
    """Counts the entries made for it in the heap: older ones are void."""
    taking: bool = True
    told_drawn: int = 0
    seconds: float = 0.0
    seen_at: float | None = None
    speed: float = 0.0
    """Tokens a second, when it last drew any."""


class RolloutQueue:
    """Groups that wait for a worker, and what each worker has in work. Knows nothing of Ray.

    Each call costs a few steps, however many workers there are.
    """

    def __init__(self, *, depth: int) -> None:
        """`depth`: samples of a worker below which it is given another group."""
        self._depth = depth
        self._waiting: list[tuple[bool, GroupId, Group]] = []
        self._work: dict[int, _Work] = {}
        self._idle: list[tuple[float, int, int]] = []
        """Workers with room and the wanted version, by unfinished tokens, number and stamp."""
        self._roomy: set[int] = set()
        """The same, as a set."""
        self._wanted: PolicyVersion = AS_LOADED
        self.behind: set[int] = set()
        """Workers that have not loaded the published version yet."""
        self._length = _FIRST_LENGTH

    @property
    def workers(self) -> int:
        """Workers that have joined and not left."""
        return len(self._work)

    def add(self, groups: Sequence[Group]) -> None:
        """Groups to be drawn by a worker of the published version; what is not to be trained on is drawn first."""
        for group in groups:
            trained = group.group_id.stage == "ppo"
            heapq.heappush(self._waiting, (trained, group.group_id, group))

    def publish(self, version: PolicyVersion) -> None:
        """From now on work goes to workers that have loaded `version`."""
        self._wanted = version
        self._idle.clear()
        self._roomy.clear()
        self.behind = set(self._work)

    def join(self, worker: int, version: PolicyVersion) -> None:
        """A worker takes work from now on."""
        self._work[worker] = _Work(version)
        if version < self._wanted:
            self.behind.add(worker)
        self._offer(worker)

    def acknowledge(self, worker: int, version: PolicyVersion) -> None:
        """A worker has loaded a version."""
        self._work[worker].version = version
        if version >= self._wanted:
            self.behind.discard(worker)
        self._offer(worker)

    def retire(self, worker: int) -> None:
        """A worker takes no more, and ends what it has."""
        self._work[worker].taking = False
        self._offer(worker)

    def leave(self, worker: int) -> list[Group]:
        """A worker is gone; what it had in work."""
        self._roomy.discard(worker)
        self.behind.discard(worker)
        work = self._work.pop(worker, None)
        return [] if work is None else list(work.groups.values())

    @property
    def room(self) -> bool:
        """Whether one more group would be begun at once."""
        return bool(self._roomy) and not self._waiting

    @property
    def waiting(self) -> int:
        """Groups that no worker has yet."""
        return len(self._waiting)

    def load(self, worker: int) -> int:
        """Groups a worker has unfinished."""
        return len(self._work[worker].groups) if worker in self._work else 0

    def hand_out(self) -> dict[int, list[Group]]:
        """Give waiting groups away, each to the worker with the fewest unfinished tokens that has room for it."""
        given: dict[int, list[Group]] = {}
        while self._waiting and self._idle:
            _, number, stamp = heapq.heappop(self._idle)
            work = self._work.get(number)
            if work is None or work.stamp != stamp:
                continue
            _, group_id, group = heapq.heappop(self._waiting)
            work.groups[group_id] = group
            work.samples += len(group.requests)
            work.given += len(group.requests)
            given.setdefault(number, []).append(group)
            self._offer(number)
        return given

    def take(self, worker: int, groups: Sequence[FinishedGroup]) -> None:
        """A worker has handed finished groups over."""
        work = self._work[worker]
        for finished in groups:
            del work.groups[finished.group_id]
            work.finished += finished.tokens
            self._length += _NEWEST * (finished.tokens / max(1, finished.samples) - self._length)

    def move(self, worker: int, groups: Sequence[Group]) -> None:
        """A worker has given unfinished groups away, for others to go on with."""
        work = self._work[worker]
        for group in groups:
            del work.groups[group.group_id]
            work.samples -= len(group.requests)
        self.add(groups)
        self._offer(worker)

    def progress(self, worker: int, progress: Progress, now: float) -> None:
        """What a worker tells of itself."""
        work = self._work[worker]
        if work.seen_at is not None and progress.tokens > work.drawn:
            seconds = now - work.seen_at
            work.seconds += seconds
            work.speed = (progress.tokens - work.drawn) / max(seconds, 1e-9)
        work.seen_at, work.drawn = now, progress.tokens
        work.samples = progress.samples + work.given - progress.taken
        self._offer(worker)

    def work_of(self, worker: int) -> dict[str, Any]:
        """Groups and samples a worker has in work, and its speed while it draws."""
        work = self._work.get(worker)
        if work is None:
            return {}
        return {"groups": len(work.groups), "in_work": work.samples, "tokens_per_second": work.speed}

    def tokens_per_second(self) -> float:
        """Tokens that all workers together draw in a second of drawing, since the last call."""
        speed = 0.0
        for work in self._work.values():
            if work.seconds > 0:
                speed += (work.drawn - work.told_drawn) / work.seconds
            work.told_drawn, work.seconds = work.drawn, 0.0
        return speed

    def _offer(self, worker: int) -> None:
        """Put a worker where its load belongs, if it may be given work."""
        work = self._work[worker]
        work.stamp += 1
        if work.taking and work.samples < self._depth and work.version >= self._wanted:
            left = work.samples * self._length - max(0, work.drawn - work.finished)
            heapq.heappush(self._idle, (left, worker, work.stamp))
            self._roomy.add(worker)
        else:
            self._roomy.discard(worker)
