"""Waiting on Ray with a deadline and a name: every failure becomes one of our errors."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from rayrlhf.errors import DeadlineError, RayrlhfError, WorkerError, in_one_line

Args = ParamSpec("Args")
Result = TypeVar("Result")

LONG_SECONDS = 40.0
"""A wait that lasts longer is told of, and again after as long."""
MOST_LOSSES = 5
"""Times in a row that the same values may be lost before it is no accident."""


class ActorLostError(WorkerError):
    """The process behind a call is gone; its pool may replace it."""


class LostObjectError(WorkerError):
    """A value that a reference stands for is gone, with its node or from the object store; it must be made again."""

    def __init__(self, message: str, object_id: str = "") -> None:
        super().__init__(message)
        self.object_id = object_id
        """Hexadecimal id of the reference."""


_tell_of_waits: Callable[[str], None] | None = None


def tell_of_waits(tell: Callable[[str], None] | None) -> None:
    """Have every wait of `resolve` that grows long told, again and again while it lasts."""
    global _tell_of_waits
    _tell_of_waits = tell


async def resolve(ref: Any, *, what: str, timeout: float, unless: asyncio.Future[Any] | None = None) -> Any:
    """The value of `ref`; DeadlineError after `timeout` seconds, ActorLostError if its process died, or the cause.

    Waits for one remote call, named by `what` in every error; unblocked by its result, its failure, the deadline, or the
    failure of `unless`, which is raised then.
    """
    answer = asyncio.wrap_future(ref.future())
    awaited = {answer} if unless is None else {answer, unless}
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        while (left := begun + timeout - clock()) > 0:
            await asyncio.wait(awaited, timeout=min(left, LONG_SECONDS), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return await answer
            if unless is not None and unless.done():
                await unless
            if _tell_of_waits is not None and clock() - begun < timeout:
                _tell_of_waits(f"Waiting {clock() - begun:.0f} s for {what}.")
    except RayError as error:
        raise translate(error, what=what) from error
    finally:
        answer.cancel()
    raise DeadlineError(f"Waited {timeout:.0f} s for {what}, in vain.")


def resolve_blocking(ref: Any, *, what: str, timeout: float) -> Any:
    """`resolve` for code outside an event loop."""
    try:
        return ray.get(ref, timeout=timeout)
    except GetTimeoutError:
        raise DeadlineError(f"Waited {timeout:.0f} s for {what}, in vain.") from None
    except RayError as error:
        raise translate(error, what=what) from error


async def together(*work: Awaitable[Any]) -> list[Any]:
    """Await everything at once; the first failure cancels the rest and is raised as itself, not in a group."""

    async def one(item: Awaitable[Any]) -> Any:
        return await item

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in work]
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]


async def alongside(work: Coroutine[Any, Any, Result], *services: Coroutine[Any, Any, None]) -> Result:
    """The result of `work`, while `services` run beside it; the first failure of any cancels all and is raised."""
    main = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(service) for service in services]
    try:
        await asyncio.wait({main, *others}, return_when=asyncio.FIRST_COMPLETED)
        for service in others:
            if service.done():
                await together(service)
        return await main
    finally:
        for task in (main, *others):
            task.cancel()
        await asyncio.gather(main, *others, return_exceptions=True)


def repeated_when_lost(
    function: Callable[Args, Coroutine[Any, Any, Result]],
) -> Callable[Args, Coroutine[Any, Any, Result]]:
    """Run a coroutine function anew when a value it passed on is lost: for work that leaves no trace before its end."""

    @wraps(function)
    async def repeated(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        for _ in range(MOST_LOSSES):
            try:
                return await function(*args, **kwargs)
            except LostObjectError:
                continue
        return await function(*args, **kwargs)

    return repeated


def translate(error: RayError, *, what: str) -> RayrlhfError:
    """One of our errors for one of Ray's: our own pass through, a dead process is ActorLostError.

    An argument that is lost on its way is LostObjectError, of the call that needed it or of one before.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, RayrlhfError):
            return type(cause)(*cause.args)
        if isinstance(cause, ObjectLostError):
            return _lost(cause, what)
        if isinstance(cause, RayActorError):
            return ActorLostError(f"{what} failed: a process it depended on died.")
        return WorkerError(f"{what} failed: {type(cause).__name__}: {in_one_line(cause)}.")
    if isinstance(error, ObjectLostError):
        return _lost(error, what)
    if isinstance(error, RayActorError):
        return ActorLostError(f"{what} failed: its process died ({_first_line(error)}).")
    return WorkerError(f"{what} failed: {type(error).__name__}: {in_one_line(error)}.")


def _lost(error: ObjectLostError, what: str) -> LostObjectError:
    told = f"{what} failed: a value it was given is lost ({type(error).__name__})."
    return LostObjectError(told, getattr(error, "object_ref_hex", ""))


def _first_line(error: RayActorError) -> str:
    """What Ray says of a dead process, without the identifiers that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no message"
