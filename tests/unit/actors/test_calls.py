"""Work beside services, and waits that are told of."""

import asyncio

import pytest

from rayrlhf.actors import calls
from rayrlhf.actors.calls import alongside, resolve, tell_of_waits
from rayrlhf.errors import DataError, DeadlineError, WorkerError


async def forever() -> None:
    await asyncio.Event().wait()


async def test_work_ends_with_its_result_and_ends_its_services() -> None:
    ended: list[str] = []

    async def service() -> None:
        try:
            await forever()
        finally:
            ended.append("service")

    async def work() -> int:
        await asyncio.sleep(0.01)
        return 7

    assert await alongside(work(), service(), service()) == 7
    assert ended == ["service", "service"]


async def test_a_service_that_fails_ends_the_work_and_is_raised_as_itself() -> None:
    async def fail() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
            raise DataError("Row 3 is bad.")

    with pytest.raises(DataError, match=r"^Row 3 is bad\.$"):
        await asyncio.wait_for(alongside(forever(), forever(), fail()), 5.0)


class Ref:
    """A remote call that is answered after some time, or never."""

    def __init__(self, seconds: float | None) -> None:
        self._future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self._future.set_result, "answer")

    def future(self) -> "asyncio.Future[str]":
        return self._future


async def test_a_wait_that_grows_long_is_told_of_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LONG_SECONDS", 0.1)
    told: list[str] = []
    tell_of_waits(told.append)
    try:
        assert await resolve(Ref(0.35), what="rollout worker 2 to load version 17", timeout=5.0) == "answer"
        assert len(told) == 3
        assert told[0] == "Waiting 0 s for rollout worker 2 to load version 17."
        assert await resolve(Ref(0.01), what="nothing", timeout=5.0) == "answer"
        assert len(told) == 3
    finally:
        tell_of_waits(None)


async def test_a_wait_ends_at_its_deadline_or_with_what_makes_it_vain() -> None:
    with pytest.raises(DeadlineError, match="Waited 0 s for an answer, in vain"):
        await resolve(Ref(None), what="an answer", timeout=0.05)
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, lost.set_exception, WorkerError("It is gone."))
    with pytest.raises(WorkerError, match="It is gone"):
        await resolve(Ref(None), what="an answer", timeout=5.0, unless=lost)
