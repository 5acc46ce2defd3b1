"""The life of one process of a pool: what may follow what, and how many may be lost."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rayrlhf.errors import WorkerError
from rayrlhf.types import PolicyVersion


class State(StrEnum):
    """Where a replica is in its life."""

    PLACING = "waiting for a place"
    STARTING = "starting"
    CATCHING_UP = "catching up"
    SERVING = "serving"
    DRAINING = "draining"
    ENDED = "ended"
    LOST = "lost"


_FOLLOWING = {
    State.PLACING: {State.STARTING, State.ENDED, State.LOST},
    State.STARTING: {State.CATCHING_UP, State.ENDED, State.LOST},
    State.CATCHING_UP: {State.SERVING, State.ENDED, State.LOST},
    State.SERVING: {State.DRAINING, State.ENDED, State.LOST},
    State.DRAINING: {State.ENDED, State.LOST},
    State.ENDED: set(),
    State.LOST: set(),
}


@dataclass(eq=False)
class Replica:
    """One process of a pool, as the driver knows it."""

    number: int
    handle: Any
    born: float
    """When it was asked for, by the loop's clock."""
    since: float
    """When it came to its state."""
    state: State = State.PLACING
    pid: int | None = None
    node: str | None = None
    """Id of its node."""
    version: PolicyVersion | None = None
    """Of the weights it has acknowledged, where its role follows any."""
    pending: int = 0
    """Its unanswered calls."""
    replaces: int | None = None
    """Number of the lost replica whose place it takes."""
    loss: asyncio.Future[None] = field(default_factory=asyncio.Future)
    """Fails when anybody finds its process gone."""

    @property
    def alive(self) -> bool:
        """Whether it counts towards the pool's size."""
        return self.state not in (State.DRAINING, State.ENDED, State.LOST)

    def to(self, state: State, now: float) -> None:
        """Go on to `state`; WorkerError where its life has no such step."""
        if state not in _FOLLOWING[self.state]:
            raise WorkerError(f"Worker {self.number} cannot go from {self.state} to {state}.")
        self.state, self.since = state, now

    def lose(self, error: Exception) -> None:
        """Somebody found its process gone, hanging or failing; the first finding counts."""
        if not self.loss.done():
            self.loss.set_exception(error)


class RestartBudget:
    """How many losses are borne: so many within a window, so that a long run may lose a process now and then.

    A node that goes takes all its processes along, which is one loss: processes of one node that lived together and are
    lost within `together` seconds count once.
    """

    def __init__(self, *, most: int, window: float, together: float = 60.0) -> None:
        self._most = most
        self._window = window
        self._together = together
        self._losses: deque[tuple[float, str | None]] = deque()

    def bear(self, now: float, *, node: str | None, born: float) -> bool:
        """Count the loss of a process of `node` that was started at `born`; False where it is one too many."""
        while self._losses and self._losses[0][0] <= now - self._window:
            self._losses.popleft()
        first = max(born, now - self._together)
        if node is None or not any(at > first and other == node for at, other in self._losses):
            self._losses.append((now, node))
        return len(self._losses) <= self._most

    def forgive(self) -> None:
        """Take the newest loss back: it was the node's, and the node's is counted."""
        if self._losses:
            self._losses.pop()
