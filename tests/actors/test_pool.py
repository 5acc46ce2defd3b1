"""Replica pools on a real local Ray: routing, replacement, deadlines, errors that keep their meaning."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rayrlhf.actors.calls import ActorLostError, resolve, together
from rayrlhf.actors.placement import spawn
from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.errors import DataError, DeadlineError, WorkerError

pytestmark = pytest.mark.slow


class Doubler:
    """A plain class that a pool runs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.version = 0

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


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def make_pool(size: int = 2, *, call_timeout: float = 30.0, max_restarts: int = 2, version: int = 0) -> ReplicaPool:
    async def prepare(handle: Any) -> None:
        if version:
            await resolve(handle.follow.remote(version), what="a replica to follow", timeout=10.0)

    return ReplicaPool(
        role="doubling",
        size=size,
        spawn=lambda number: spawn(Doubler, {"num_cpus": 0}, number),
        prepare=prepare,
        start_timeout=60.0,
        call_timeout=call_timeout,
        max_restarts=max_restarts,
        tell=lambda _: None,
    )


async def test_heavy_values_stay_behind_references_and_calls_spread() -> None:
    pool = make_pool()
    await pool.start()
    results = await together(*(pool.call("double", [i, i]) for i in range(4)))
    assert [ray.get(ref) for ref, _ in results] == [[2 * i, 2 * i] for i in range(4)]
    assert {number for _, (number, _, _) in results} == {0, 1}
    pool.stop()


async def test_a_call_survives_the_death_of_its_process_on_a_prepared_replacement() -> None:
    pool = make_pool(size=1, version=5)
    await pool.start()
    _, (_, _, pid) = await pool.call("double", [1])
    lost: list[str] = []
    slow = asyncio.create_task(pool.call("slow", 2.0, on_loss=lambda: lost.append("told")))
    await asyncio.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    _, new_pid = await slow
    assert new_pid != pid
    assert lost == ["told"]
    _, (number, version, _) = await pool.call("double", [1])
    assert (number, version, pool.restarts) == (1, 5, 1)
    pool.stop()


async def test_two_calls_on_one_dead_replica_replace_it_once() -> None:
    pool = make_pool(size=1)
    await pool.start()
    _, (_, _, pid) = await pool.call("double", [1])
    calls = [asyncio.create_task(pool.call("slow", 1.0)) for _ in range(2)]
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    assert len({pid for _, pid in await together(*calls)}) == 1
    assert pool.restarts == 1
    pool.stop()


async def test_a_pool_that_keeps_dying_gives_up_with_its_name() -> None:
    pool = make_pool(size=1, max_restarts=1)
    await pool.start()
    with pytest.raises(WorkerError, match="doubling pool has used its 1 replacements"):
        await pool.call("die")
    pool.stop()


async def test_a_replica_that_dies_in_a_broadcast_is_replaced_by_a_prepared_one() -> None:
    pool = make_pool(size=2, version=9)
    await pool.start()
    _, (_, _, pid) = await pool.call("double", [1])
    os.kill(pid, signal.SIGKILL)
    assert sorted(await pool.broadcast("follow", 9), key=str) == [9, None]
    results = await together(*(pool.call("double", [i]) for i in range(2)))
    assert {version for _, (_, version, _) in results} == {9}
    pool.stop()


async def test_deadlines_and_causes_keep_their_meaning() -> None:
    pool = make_pool(size=1, call_timeout=1.0)
    await pool.start()
    with pytest.raises(DataError, match=r"^Row 7 is bad\.$"):
        await pool.call("refuse")
    with pytest.raises(WorkerError, match=r"doubling worker 0 .crash. failed: ZeroDivisionError: by hand"):
        await pool.call("crash")
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match="Waited 1 s for doubling worker 0"):
        await pool.call("slow", 20.0)
    assert time.monotonic() - begun < 5
    pool.stop()


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


async def test_a_replacement_that_dies_while_it_starts_is_replaced_too() -> None:
    pool = make_pool(1)
    pool.spawn = lambda number: spawn(Fragile, {"num_cpus": 0}, number)
    await pool.start()
    deaths: list[None] = []
    with pytest.raises(WorkerError, match="has used its 2 replacements"):
        await pool.call("die", on_loss=lambda: deaths.append(None))
    assert pool.restarts == 3
    assert len(deaths) == 2
    pool.stop()


async def test_a_full_pool_lets_its_callers_wait() -> None:
    pool = make_pool(size=2)
    pool.max_pending = 1
    await pool.start()
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, *(replica.pending for replica in pool._replicas))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    begun = time.monotonic()
    answers = await together(*(pool.call("slow", 0.3) for _ in range(6)))
    watching.cancel()
    pool.stop()
    assert len({pid for _, pid in answers}) == 2
    assert most == 1
    assert time.monotonic() - begun > 0.85


async def test_a_pool_that_stays_full_is_a_deadline() -> None:
    pool = make_pool(size=1, call_timeout=1.0)
    pool.max_pending = 1
    await pool.start()
    with pytest.raises(
        DeadlineError, match=r"Waited 1 s for (a doubling worker to become free|doubling worker 0 .slow.)"
    ):
        await together(pool.call("slow", 5.0), pool.call("slow", 5.0))
    pool.stop()
