"""Replicas of one role: started together, routed to by load, replaced when they die."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from rayrlhf.actors.calls import ActorLostError, LostObjectError, resolve, together
from rayrlhf.actors.placement import end
from rayrlhf.errors import DeadlineError, WorkerError

_PAUSE_SECONDS = 10.0
"""The first wait for Ray to notice a dead node; each further one is twice as long."""


@dataclass
class Replica:
    """One process of a pool; `pending` counts its unanswered calls."""

    number: int
    handle: Any
    pending: int = 0
    ready: bool = False


@dataclass(kw_only=True)
class ReplicaPool:
    """A role's processes. A replica takes calls only once `prepare` has brought it up to date."""

    role: str
    size: int
    spawn: Callable[[int], Any]
    prepare: Callable[[Any], Awaitable[None]]
    start_timeout: float
    call_timeout: float
    max_restarts: int
    tell: Callable[[str], None]
    """Hears of every replacement."""
    max_pending: int | None = None
    """Unanswered calls a replica may have; further ones wait for one of them to end."""
    restarts: int = 0
    _replicas: list[Replica] = field(default_factory=list)
    _spawned: int = 0
    _forgiven: int = 0
    """Replacements that went down with a node, before it was known to be dead."""

    async def start(self) -> None:
        """Start every replica at once; waits until all are ready, at most `start_timeout` seconds."""
        self._replicas = [self._spawn() for _ in range(self.size)]
        await together(*(self._bring_up(replica) for replica in self._replicas))

    async def call(self, method: str, *args: Any, on_loss: Callable[[], None] | None = None) -> tuple[Any, Any]:
        """Call `method` on the least loaded replica, again on another if its process dies (after `on_loss`).

        `method` returns a heavy value and a light one: the answer is a reference to the first and the second itself.
        """
        while True:
            replica = await self._least_loaded()
            replica.pending += 1
            refs = getattr(replica.handle, method).options(num_returns=2).remote(*args)
            try:
                light = await resolve(refs[1], what=self._name(replica, method), timeout=self.call_timeout)
                return refs[0], light
            except LostObjectError as loss:
                if loss.object_id != refs[1].hex():
                    raise
                if on_loss is not None:  # The answer was lost, not an argument.
                    on_loss()
            except ActorLostError as loss:
                if on_loss is not None:
                    on_loss()
                await self._replace(replica, loss)
            finally:
                replica.pending -= 1

    async def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Call `method` on every replica; one that dies is replaced (its replacement is prepared instead)."""

        async def one(replica: Replica) -> Any:
            try:
                ref = getattr(replica.handle, method).remote(*args)
                return await resolve(ref, what=self._name(replica, method), timeout=self.call_timeout)
            except ActorLostError as loss:
                await self._replace(replica, loss)
                return None

        return await together(*(one(replica) for replica in list(self._replicas)))

    def stop(self) -> None:
        """End every process of the pool."""
        for replica in self._replicas:
            end(replica.handle)
        self._replicas = []

    def _spawn(self) -> Replica:
        number = self._spawned
        self._spawned += 1
        return Replica(number, self.spawn(number))

    async def _bring_up(self, replica: Replica) -> None:
        what = f"{self.role} worker {replica.number} to start"
        await resolve(replica.handle.ready.remote(), what=what, timeout=self.start_timeout)
        await self.prepare(replica.handle)
        replica.ready = True

    async def _replace(self, lost: Replica, loss: ActorLostError) -> None:
        if lost not in self._replicas:
            return  # Another call on it saw the loss first.
        pause = _PAUSE_SECONDS
        while True:
            self.restarts += 1
            if self.restarts - self._forgiven > self.max_restarts:
                raise WorkerError(
                    f"{loss} The {self.role} pool has used its {self.max_restarts} replacements."
                ) from loss
            end(lost.handle)
            self.tell(f"{loss} Replacement {self.restarts} of at most {self.max_restarts} starts.")
            replacement = self._spawn()
            self._replicas[self._replicas.index(lost)] = replacement
            try:
                await self._bring_up(replacement)
                return
            except ActorLostError as again:
                lost, loss = replacement, again
                if await _nodes_changed(pause):
                    self._forgiven += 1
                pause *= 2.0

    async def _least_loaded(self) -> Replica:
        """The ready replica with the fewest unanswered calls; waits while all are being replaced or are full."""
        begun = time.monotonic()
        while True:
            ready = [replica for replica in self._replicas if replica.ready]
            free = [r for r in ready if self.max_pending is None or r.pending < self.max_pending]
            if free:
                return min(free, key=lambda r: (r.pending, r.number))
            limit, state = (self.call_timeout, "free") if ready else (self.start_timeout, "ready")
            if time.monotonic() > begun + limit:
                raise DeadlineError(f"Waited {limit:.0f} s for a {self.role} worker to become {state}.")
            await asyncio.sleep(0.05 if not ready else 0.005)

    def _name(self, replica: Replica, method: str) -> str:
        return f"{self.role} worker {replica.number} ({method})"


async def _nodes_changed(seconds: float) -> bool:
    """Wait, at most `seconds`, for Ray to mark a node dead: until then it sends replacements there, one after another.

    Where there is one node, it is not the node that died.
    """
    known = _alive()
    begun = time.monotonic()
    while len(known) > 1 and time.monotonic() < begun + seconds:
        if _alive() != known:
            return True
        await asyncio.sleep(0.5)
    return False


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
