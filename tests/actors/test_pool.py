"""Replica pools on a real local Ray: routing, replacement, resizing, deadlines, errors that keep their meaning."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import ray

from rayrlhf.actors.calls import ActorLostError, resolve, together
from rayrlhf.actors.placement import spawn
from rayrlhf.actors.pool import ReplicaPool, StalledError
from rayrlhf.actors.replica import Replica, State
from rayrlhf.config import RoleConfig
from rayrlhf.errors import DataError, DeadlineError, WorkerError
from rayrlhf.telemetry.events import Event

pytestmark = pytest.mark.slow


class Doubler:
    """A plain class that a pool runs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.version = 0

    def where(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def ready(self) -> None:
        pass

    def follow(self, version: int) -> int:
        self.version = version
        return version

    def double(self, values: list[int]) -> tuple[list[int], tuple[int, int, int]]:
        return [2 * value for value in values], (self.number, self.version, os.getpid())

    def slow(self, seconds: float) -> tuple[None, int]:
        time.sleep(seconds)
        return None, os.getpid()

    def die(self) -> tuple[None, None]:
        os.kill(os.getpid(), signal.SIGKILL)
        return None, None

    def refuse(self) -> tuple[None, None]:
        raise DataError("Row 7 is bad.")

    def crash(self) -> tuple[None, None]:
        raise ZeroDivisionError("by hand")


class Fragile(Doubler):
    """Its second process dies while it starts."""

    def ready(self) -> None:
        if self.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Late(Doubler):
    """Its second process never becomes ready."""

    def ready(self) -> None:
        if self.number == 1:
            time.sleep(1000.0)


class Refusing(Doubler):
    """It cannot be made."""

    def ready(self) -> None:
        raise DataError("No such model.")


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


async def live(replica: Replica) -> None:
    while replica.state is State.SERVING or replica.pending:
        await asyncio.sleep(0.05)


class Made:
    """A pool under test, with what it told."""

    def __init__(self, size: int, *, kind: type = Doubler, version: int = 0, **options: Any) -> None:
        self.told: list[Event] = []
        limits = {"start_timeout": 60.0, "call_timeout": 30.0, "max_restarts": 2}
        self.pool = ReplicaPool(
            "doubling",
            RoleConfig(**(limits | {key: value for key, value in options.items() if key in RoleConfig.model_fields})),
            size=size,
            spawn=lambda number: spawn(kind, {"num_cpus": options.get("placed", 0)}, number),
            bring_up=lambda replica: self._follow(replica, version),
            serve=options.get("serve", live),
            on_loss=lambda _: " Its work goes back.",
            max_pending=options.get("max_pending"),
            tell=self.told.append,
        )

    async def _follow(self, replica: Replica, version: int) -> None:
        await resolve(replica.handle.follow.remote(version), what="a replica to follow", timeout=10.0)

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self.told if event.kind == kind]


@asynccontextmanager
async def running(made: Made) -> AsyncIterator[ReplicaPool]:
    run = asyncio.ensure_future(made.pool.run())
    ready = asyncio.ensure_future(made.pool.ready())
    try:
        await asyncio.wait({run, ready}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            await together(run)
        yield made.pool
        if run.done():
            await together(run)
    finally:
        ready.cancel()
        run.cancel()
        await asyncio.gather(run, ready, return_exceptions=True)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def failure_of(made: Made, work: Callable[[ReplicaPool], Awaitable[Any]]) -> Exception:
    """What ends a pool while `work` uses it."""
    run = asyncio.ensure_future(made.pool.run())
    working = asyncio.ensure_future(work(made.pool))
    try:
        await asyncio.wait_for(together(run), 60.0)
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return error
    finally:
        working.cancel()
    raise AssertionError("the pool goes on")


async def test_heavy_values_stay_behind_references_and_calls_spread() -> None:
    async with running(Made(2)) as pool:
        results = await together(*(pool.call("double", [i, i]) for i in range(4)))
        assert [ray.get(ref) for ref, _ in results] == [[2 * i, 2 * i] for i in range(4)]
        assert {number for _, (number, _, _) in results} == {0, 1}


async def test_a_call_survives_the_death_of_its_process_on_a_prepared_replacement() -> None:
    made = Made(1, version=5)
    async with running(made) as pool:
        _, (_, _, pid) = await pool.call("double", [1])
        slow = asyncio.create_task(pool.call("slow", 2.0))
        await asyncio.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        _, new_pid = await slow
        assert new_pid != pid
        _, (number, version, _) = await pool.call("double", [1])
        assert (number, version, pool.restarts) == (1, 5, 1)
        (death,) = made.texts("death")
        assert "its process died" in death
        assert death.endswith("Its work goes back. A replacement starts.")
        (replaced,) = made.texts("replacement")
        assert replaced.startswith("doubling worker 1 serves in place of doubling worker 0,")


async def test_two_calls_on_one_dead_replica_replace_it_once() -> None:
    async with running(Made(1)) as pool:
        _, (_, _, pid) = await pool.call("double", [1])
        calls = [asyncio.create_task(pool.call("slow", 1.0)) for _ in range(2)]
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        assert len({pid for _, pid in await together(*calls)}) == 1
        assert pool.restarts == 1


async def test_the_others_go_on_while_one_is_replaced() -> None:
    async with running(Made(2)) as pool:
        _, (_, _, pid) = await pool.call("double", [1])
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        for _ in range(5):
            await pool.call("double", [1])
        assert time.monotonic() - begun < 1.0
        await until(lambda: len(pool.serving) == 2)
        assert pool.restarts == 1


async def test_a_pool_that_keeps_dying_gives_up_with_its_name() -> None:
    async def die(pool: ReplicaPool) -> None:
        await pool.call("die")

    error = await failure_of(Made(1, max_restarts=1), die)
    assert "The doubling pool has lost more than 1 workers within 600 s (doubling.max_restarts" in str(error)


async def test_a_process_that_cannot_be_made_ends_the_pool_with_its_reason() -> None:
    async def wait(pool: ReplicaPool) -> None:
        await pool.ready()

    error = await failure_of(Made(1, kind=Refusing), wait)
    assert (type(error), str(error)) == (DataError, "No such model.")


async def test_a_replacement_that_dies_while_it_starts_is_replaced_too() -> None:
    async with running(Made(1, kind=Fragile)) as pool:
        _, (_, _, pid) = await pool.call("double", [1])
        os.kill(pid, signal.SIGKILL)
        _, (number, _, _) = await pool.call("double", [1])
        assert (number, pool.restarts) == (2, 2)


async def test_a_joiner_that_hangs_is_given_up_and_another_one_comes() -> None:
    made = Made(1, kind=Late, start_timeout=5.0)
    async with running(made) as pool:
        await pool.resize(2)
        await until(lambda: len(pool.serving) == 2)
        assert "Waited 5 s for doubling worker 1 to start" in made.texts("death")[0]
        assert sorted(replica.number for replica in pool.serving) == [0, 2]


async def test_growing_and_shrinking_end_nobody_at_work() -> None:
    made = Made(1)
    async with running(made) as pool:
        await pool.resize(3)
        await until(lambda: len(pool.serving) == 3)
        calls = [asyncio.create_task(pool.call("slow", 1.0)) for _ in range(3)]
        await asyncio.sleep(0.3)
        await pool.resize(1)
        await until(lambda: len(pool.serving) == 1)
        assert [replica.state for replica in pool.replicas].count(State.DRAINING) == 2
        assert len({pid for _, pid in await together(*calls)}) == 3
        await until(lambda: len(pool.replicas) == 1)
        assert pool.replicas[0].number == 0
        assert pool.restarts == 0
        assert {event.kind for event in made.told} == {"scale"}
        told = sorted(event.text.partition(",")[0] for event in made.told)
        assert told == [f"doubling worker {n} {does}" for n in (1, 2) for does in ("has left.", "serves")]


async def test_a_joiner_without_a_place_waits_and_the_others_serve() -> None:
    made = Made(1, placed=2)
    async with running(made) as pool:
        await pool.resize(2)
        await until(lambda: len(pool.replicas) == 2)
        await pool.call("double", [1])
        assert pool.replicas[1].state is State.PLACING
        await pool.resize(1)
        await until(lambda: len(pool.replicas) == 1)


async def test_a_replica_found_hanging_is_replaced() -> None:
    async def serve(replica: Replica) -> None:
        if replica.number == 0:
            await asyncio.sleep(0.2)
            raise StalledError("It makes no progress.")
        await live(replica)

    made = Made(1, serve=serve)
    async with running(made) as pool:
        await until(lambda: [replica.number for replica in pool.serving] == [1])
        assert "It makes no progress." in made.texts("death")[0]


async def test_deadlines_and_causes_keep_their_meaning() -> None:
    async with running(Made(1, call_timeout=1.0)) as pool:
        with pytest.raises(DataError, match=r"^Row 7 is bad\.$"):
            await pool.call("refuse")
        with pytest.raises(WorkerError, match=r"doubling worker 0 .crash. failed: ZeroDivisionError: by hand"):
            await pool.call("crash")
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match="Waited 1 s for doubling worker 0"):
            await pool.call("slow", 20.0)
        assert time.monotonic() - begun < 5


async def test_the_first_failure_cancels_the_rest_and_comes_alone() -> None:
    async def fail() -> None:
        raise WorkerError("first")

    waiting = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(WorkerError, match=r"^first$"):
        await together(fail(), waiting)
    assert waiting.cancelled()


async def test_a_dead_actor_is_told_from_a_failed_call() -> None:
    handle = spawn(Doubler, {"num_cpus": 0}, 0)
    with pytest.raises(ActorLostError, match="the call failed: its process died"):
        await resolve(handle.die.remote(), what="the call", timeout=30.0)


async def test_a_full_pool_lets_its_callers_wait() -> None:
    async with running(Made(2, max_pending=1)) as pool:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, *(replica.pending for replica in pool.replicas))
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        begun = time.monotonic()
        answers = await together(*(pool.call("slow", 0.3) for _ in range(6)))
        watching.cancel()
        assert len({pid for _, pid in answers}) == 2
        assert most == 1
        assert time.monotonic() - begun > 0.85


async def test_a_pool_that_stays_full_is_a_deadline() -> None:
    async with running(Made(1, call_timeout=1.0, max_pending=1)) as pool:
        with pytest.raises(
            DeadlineError, match=r"Waited 1 s for (a doubling worker to become free|doubling worker 0 .slow.)"
        ):
            await together(pool.call("slow", 5.0), pool.call("slow", 5.0))
