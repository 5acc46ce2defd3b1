"""Which worker draws which group: shortest work first, queues just deep enough, oldest prompts before younger ones."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rayrlhf.actors.replica import Replica
from rayrlhf.rollout.stream import FinishedGroup, Progress
from rayrlhf.types import Group, GroupId, PolicyVersion

_FIRST_LENGTH = 64.0
"""Tokens a response is taken to have before any is known."""
_NEWEST = 0.05
"""Weight of a newly finished response in the running mean length."""


@dataclass
class _Work:
    """What one worker has in work."""

    groups: dict[GroupId, Group] = field(default_factory=dict)
    versions: dict[GroupId, PolicyVersion] = field(default_factory=dict)
    samples: int = 0
    drawn: int = 0
    """Tokens it has drawn since it joined."""
    finished: int = 0
    """Of these, tokens of groups it has handed over."""
    told_drawn: int = 0
    seconds: float = 0.0
    seen_at: float | None = None
    speed: float = 0.0
    """Tokens a second, when it last drew any."""


class RolloutQueue:
    """Groups that wait for a worker, and what each worker has in work. Knows nothing of Ray."""

    def __init__(self, *, depth: int) -> None:
        """`depth`: samples that fill an engine."""
        self._depth = depth
        self._waiting: list[tuple[bool, GroupId, PolicyVersion, Group]] = []
        self._work: dict[int, _Work] = {}
        self._length = _FIRST_LENGTH

    def add(self, groups: Sequence[Group], version: PolicyVersion) -> None:
        """Groups to be drawn by a worker of at least `version`; what is not to be trained on is drawn first."""
        for group in groups:
            trained = group.group_id.stage == "ppo"
            heapq.heappush(self._waiting, (trained, group.group_id, version, group))

    def join(self, worker: int) -> None:
        """A worker takes work from now on."""
        self._work[worker] = _Work()

    def leave(self, worker: int) -> list[Group]:
        """A worker takes no more; what it had in work."""
        return list(self._work.pop(worker, _Work()).groups.values())

    def room(self, serving: Sequence[Replica]) -> bool:
        """Whether one more group would be begun at once."""
        return not self._waiting and any(
            self._work[r.number].samples < self._depth for r in serving if r.number in self._work
        )

    @property
    def waiting(self) -> int:
        """Groups that no worker has yet."""
        return len(self._waiting)

    def load(self, worker: int) -> int:
        """Samples a worker has unfinished."""
        return self._work[worker].samples if worker in self._work else 0

    def hand_out(self, serving: Sequence[Replica]) -> list[tuple[Replica, list[Group]]]:
        """Give waiting groups away, each to the worker with the fewest unfinished tokens that has room for it."""
        given: dict[int, list[Group]] = {}
        kept = []
        workers = {r.number: r for r in serving if r.number in self._work}
        while self._waiting and workers:
            entry = heapq.heappop(self._waiting)
            _, group_id, version, group = entry
            fit = [
                n
                for n, replica in workers.items()
                if (replica.version or 0) >= version and self._work[n].samples < self._depth
            ]
            if not fit:
                kept.append(entry)
                continue
            number = min(fit, key=lambda n: (self._tokens_left(self._work[n]), n))
            work = self._work[number]
            work.groups[group_id], work.versions[group_id] = group, version
            work.samples += len(group.requests)
            given.setdefault(number, []).append(group)
        for entry in kept:
            heapq.heappush(self._waiting, entry)
        return [(workers[number], groups) for number, groups in given.items()]

    def take(self, worker: int, groups: Sequence[FinishedGroup]) -> None:
        """A worker has handed finished groups over."""
        work = self._work[worker]
        for finished in groups:
            group = work.groups.pop(finished.group_id)
            work.versions.pop(finished.group_id)
            work.samples -= len(group.requests)
            work.finished += finished.tokens
            mean = finished.tokens / max(1, finished.samples)
            self._length += _NEWEST * (mean - self._length)

    def move(self, worker: int, groups: Sequence[Group]) -> None:
        """A worker has given unfinished groups away, for others of at least the version they were to begin with."""
        work = self._work[worker]
        for group in groups:
            version = work.versions.pop(group.group_id)
            work.samples -= len(work.groups.pop(group.group_id).requests)
            self.add([group], version)

    def progress(self, worker: int, progress: Progress, now: float) -> None:
        """What a worker tells of itself."""
        work = self._work[worker]
        if work.seen_at is not None and progress.tokens > work.drawn:
            seconds = now - work.seen_at
            work.seconds += seconds
            work.speed = (progress.tokens - work.drawn) / max(seconds, 1e-9)
        work.seen_at, work.drawn = now, progress.tokens

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

    def _tokens_left(self, work: _Work) -> float:
        return work.samples * self._length - max(0, work.drawn - work.finished)
