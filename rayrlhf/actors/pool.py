"""Replicas of one role: as many as are wanted at the moment, each with a life of its own, replaced when they die."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors import placement
from rayrlhf.actors.calls import ActorLostError, LostObjectError, resolve
from rayrlhf.actors.replica import Replica, RestartBudget, State
from rayrlhf.actors.stacks import ask_for_stacks
from rayrlhf.config import RoleConfig
from rayrlhf.errors import DeadlineError, WorkerError
from rayrlhf.telemetry.events import Event

PAUSE_SECONDS = 10.0
"""The first wait for Ray to notice a dead node; each further one is twice as long."""
_TELL_SECONDS = 30.0
"""Between two sentences about one wait."""


class StalledError(ActorLostError):
    """A process is there and makes no progress; its pool replaces it."""


async def _no_more(_: Replica) -> None:
    """What a role without versions has to catch up on."""


class ReplicaPool:
    """A role's processes. `run` keeps as many alive as `size` says, for as long as it is awaited.

    A replica takes work only once `bring_up` has brought it up to date; `serve` then follows it for the rest of its life,
    and returns when it has drained. `on_drain` hears of a replica that is to take no more. `on_loss` hears of a lost one
    first, so that its work goes back to the queue, and answers with what to tell of that.
    """

    def __init__(
        self,
        role: str,
        config: RoleConfig,
        *,
        size: int,
        spawn: Callable[[int], Any],
        serve: Callable[[Replica], Awaitable[None]],
        tell: Callable[[Event], None],
        bring_up: Callable[[Replica], Awaitable[None]] = _no_more,
        on_drain: Callable[[Replica], None] = lambda _: None,
        on_loss: Callable[[Replica], str] = lambda _: "",
        end: Callable[[Any], None] = placement.end,
        max_pending: int | None = None,
        stacks: Callable[[int], Path] | None = None,
    ) -> None:
        self.role = role
        self.size = size
        self.restarts = 0
        self.replicas: list[Replica] = []
        self.changed = asyncio.Condition()
        """Notified whenever a replica comes to another state."""
        self._answered = asyncio.Condition()
        """Notified whenever a call may find another replica free."""
        self._config = config
        self._spawn = spawn
        self._serve = serve
        self._tell = tell
        self._bring_up = bring_up
        self._on_drain = on_drain
        self._on_loss = on_loss
        self._end = end
        self._max_pending = max_pending
        self._stacks = stacks
        self._budget = RestartBudget(most=config.max_restarts, window=config.restart_window)
        self._spawned = 0
        self._vacant: list[int] = []
        """Numbers of lost replicas whose places are to be taken."""
        self._pause = PAUSE_SECONDS
        self._under_way = False
        """Whether the first replicas serve: what joins or leaves from now on is told."""

    @property
    def serving(self) -> list[Replica]:
        """Replicas that take work."""
        return [r for r in self.replicas if r.state is State.SERVING and not r.loss.done()]

    async def run(self) -> None:
        """Keep the pool at its size until cancelled; WorkerError when more are lost than the budget bears."""
        try:
            async with asyncio.TaskGroup() as lives:
                while True:
                    self._grow(lives)
                    self._shrink()
                    async with self.changed:
                        await self.changed.wait()
        finally:
            for replica in self.replicas:
                self._end(replica.handle)

    async def ready(self) -> None:
        """Wait until as many replicas serve as the pool is to have; after `start_timeout` seconds one is enough."""
        async with self.changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.start_timeout):
                    await self.changed.wait_for(lambda: len(self.serving) >= self.size)
            await self.changed.wait_for(lambda: self.serving)
        self._under_way = True

    async def resize(self, size: int) -> None:
        """Grow or shrink to `size`; returns at once."""
        self.size = size
        await self._notify()

    async def call(self, method: str, *args: Any) -> tuple[Any, Any]:
        """Call `method` on the least loaded replica, again on another if its process dies.

        `method` returns a heavy value and a light one: the answer is a reference to the first and the second itself.
        """
        while True:
            replica = await self._least_loaded()
            replica.pending += 1
            refs = getattr(replica.handle, method).options(num_returns=2).remote(*args)
            try:
                light = await resolve(
                    refs[1], what=self.name(replica, method), timeout=self._config.call_timeout, unless=replica.loss
                )
                return refs[0], light
            except LostObjectError as loss:
                if loss.object_id != refs[1].hex():
                    raise  # An argument was lost, not the answer.
            except ActorLostError as loss:
                replica.lose(loss)
            finally:
                replica.pending -= 1
                async with self._answered:
                    self._answered.notify_all()

    def name(self, replica: Replica, doing: str) -> str:
        """A replica's name in a sentence."""
        return f"{self.role} worker {replica.number} ({doing})"

    # -- one life ---------------------------------------------------------------------------------------------------

    def _grow(self, lives: asyncio.TaskGroup) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(self.size - sum(replica.alive for replica in self.replicas)):
            replica = Replica(self._spawned, self._spawn(self._spawned), born=now, since=now)
            self._spawned += 1
            if self._vacant:
                replica.replaces = self._vacant.pop(0)
            self.replicas.append(replica)
            lives.create_task(self._live(replica))

    def _shrink(self) -> None:
        """Those that do not serve yet go first, then the youngest."""
        alive = [replica for replica in self.replicas if replica.alive]
        alive.sort(key=lambda replica: (replica.state is State.SERVING, -replica.number))
        for replica in alive[: max(0, len(alive) - self.size)]:
            if replica.state is State.SERVING:
                replica.to(State.DRAINING, asyncio.get_running_loop().time())
                self._on_drain(replica)
            else:
                replica.lose(WorkerError("not needed any more"))

    async def _live(self, replica: Replica) -> None:
        life = asyncio.ensure_future(self._life(replica))
        try:
            await asyncio.wait({life, replica.loss}, return_when=asyncio.FIRST_COMPLETED)
            await (life if life.done() else replica.loss)
            await self._go_to(replica, State.ENDED)
            self._announce("scale", replica, f"{self.role} worker {replica.number} has left.")
        except ActorLostError as loss:
            await self._bury(replica, loss)
        except WorkerError:
            if replica.loss.done() and not life.done():  # shrunk away while it started
                replica.to(State.ENDED, asyncio.get_running_loop().time())
            else:
                raise
        finally:
            life.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await life
            replica.loss.cancel()
            self._end(replica.handle)
            self.replicas.remove(replica)
            await self._notify()

    async def _life(self, replica: Replica) -> None:
        where = replica.handle.where.remote()
        replica.node, replica.pid = await self._placed(replica, where)
        await self._go_to(replica, State.STARTING)
        try:
            what = f"{self.role} worker {replica.number} to start"
            await resolve(replica.handle.ready.remote(), what=what, timeout=self._config.start_timeout)
        except DeadlineError as late:
            if self.serving:
                raise StalledError(str(late)) from late
            raise
        await self._go_to(replica, State.CATCHING_UP)
        await self._bring_up(replica)
        await self._go_to(replica, State.SERVING)
        self._pause = PAUSE_SECONDS
        if replica.replaces is not None:
            self._announce(
                "replacement",
                replica,
                f"{self.role} worker {replica.number} serves in place of {self.role} worker {replica.replaces}, "
                f"{replica.since - replica.born:.0f} s after it was asked for.",
            )
        elif self._under_way:
            seconds = replica.since - replica.born
            self._announce(
                "scale",
                replica,
                f"{self.role} worker {replica.number} serves, {seconds:.0f} s after it was asked for.",
            )
        await self._serve(replica)

    async def _placed(self, replica: Replica, where: Any) -> tuple[str, int]:
        """Wait for Ray to find a place, as long as it takes where others serve: the pending actor is its demand signal."""
        loop = asyncio.get_running_loop()
        needs = f"{self._config.placed_cpus:g} CPU" + (f" and {self._config.gpus:g} GPU" if self._config.gpus else "")
        while True:
            what = f"a place with {needs}, and a process there, for {self.role} worker {replica.number}"
            try:
                found: tuple[str, int] = await resolve(where, what=what, timeout=_TELL_SECONDS)
                return found
            except DeadlineError:
                waited = loop.time() - replica.born
                self._announce("wait", replica, f"Waiting {waited:.0f} s for {what}.")
                if not self.serving and waited > self._config.start_timeout:
                    raise

    async def _bury(self, replica: Replica, loss: ActorLostError) -> None:
        """Give its work back, tell of it, and let the pool replace it, unless that has happened too often."""
        loop = asyncio.get_running_loop()
        started = replica.state in (State.SERVING, State.DRAINING)
        wanted = replica.alive
        replica.to(State.LOST, loop.time())
        self.restarts += 1
        given_back = self._on_loss(replica)
        if isinstance(loss, StalledError) and self._stacks is not None:
            path = self._stacks(replica.number)
            given_back += await asyncio.to_thread(ask_for_stacks, path, node=replica.node, pid=replica.pid)
        borne = self._budget.bear(loop.time(), node=replica.node, born=replica.born)
        if not borne:
            self._announce("death", replica, f"{loss}{given_back}")
            raise WorkerError(
                f"{loss} The {self.role} pool has lost more than {self._config.max_restarts} workers within "
                f"{self._config.restart_window:.0f} s ({self.role}.max_restarts, {self.role}.restart_window)."
            ) from loss
        follows = " A replacement starts." if wanted else ""
        self._announce("death", replica, f"{loss}{given_back}{follows}")
        if wanted:
            self._vacant.append(replica.number if replica.replaces is None or started else replica.replaces)
        await self._notify()
        if not started:
            # Until Ray has marked a dead node it sends replacements there, one after another.
            pause, self._pause = self._pause, self._pause * 2.0
            if await nodes_changed(pause):
                self._budget.forgive()

    async def _go_to(self, replica: Replica, state: State) -> None:
        replica.to(state, asyncio.get_running_loop().time())
        await self._notify()

    async def _notify(self) -> None:
        for condition in (self.changed, self._answered):
            async with condition:
                condition.notify_all()

    def _announce(self, kind: Any, replica: Replica, text: str) -> None:
        self._tell(
            Event(kind=kind, text=text, role=self.role, number=replica.number, node=replica.node, pid=replica.pid)
        )

    # -- routing ----------------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until a replica would take a call at once."""
        await self._least_loaded()

    async def _least_loaded(self) -> Replica:
        """The serving replica with the fewest unanswered calls; waits while all are being replaced or are full."""

        def free() -> list[Replica]:
            return [r for r in self.serving if self._max_pending is None or r.pending < self._max_pending]

        limit, state = (self._config.call_timeout, "free") if self.serving else (self._config.start_timeout, "ready")
        async with self._answered:
            try:
                async with asyncio.timeout(limit):
                    await self._answered.wait_for(free)
            except TimeoutError:
                raise DeadlineError(f"Waited {limit:.0f} s for a {self.role} worker to become {state}.") from None
            return min(free(), key=lambda r: (r.pending, r.number))


async def nodes_changed(seconds: float) -> bool:
    """Wait, at most `seconds`, for Ray to mark a node dead.

    Where there is one node, it is not the node that died.
    """
    known = _alive()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while len(known) > 1 and loop.time() < begun + seconds:
        if _alive() != known:
            return True
        await asyncio.sleep(0.5)
    return False


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
