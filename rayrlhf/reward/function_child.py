"""The process a reward function runs in, since it may hang, exit or crash: told texts, it answers with numbers."""

import asyncio
import faulthandler
import importlib
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from rayrlhf.reward.real_number import finite_number, show

Asked = tuple[str, str | list[str], str | None]
"""Prompt, response (or a group's responses) and reference of one call."""
Answer = float | str
"""A score, or why there is none."""
RewardFunction = Callable[..., Any]

# What the process says: each is a tuple that begins with its kind.
READY, REFUSED, BEGUN, WAITING, ANSWERED, MISSING, DONE = (
    "ready",
    "refused",
    "begun",
    "waiting",
    "answered",
    "missing",
    "done",
)


def load_function(target: str) -> RewardFunction:
    """The function that `package.module:name` names; ValueError with the reason where there is none."""
    module, _, name = target.partition(":")
    try:
        function: RewardFunction = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The reward function {target} cannot be imported by the scoring workers: {error}. It must be installed there or "
            f"lie in the job's working directory."
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"The reward function {target} cannot be imported: its module fails with {type(error).__name__}: {error}."
        ) from error
    if not callable(function):
        raise ValueError(f"The reward function {target} is {type(function).__name__}, not a function.")  # noqa: TRY004 - wrong in the configuration
    return function


class _Process:
    def __init__(self, function: RewardFunction, connection: Connection, timeout: float) -> None:
        self._function = function
        self._connection = connection
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()

    def answer(self, asked: Sequence[Asked], at_once: int) -> None:
        """One answer a call, as soon as there is one; calls that are awaited run together, up to `at_once` of them."""
        waiting = []
        for number, (prompt, responses, reference) in enumerate(asked):
            self._say(BEGUN, number)
            own = responses if isinstance(responses, str) else list(responses)  # A function may take its list apart.
            try:
                value = self._function(prompt, own, reference)
                if inspect.isawaitable(value):
                    waiting.append((number, value))
                    self._say(WAITING, number)
                    continue
                self._say(ANSWERED, number, _answers(value, responses))
            except BaseException as error:  # noqa: BLE001 - somebody else's code: this sample has no score
                self._fail(number, error)
        if waiting:
            self._loop.run_until_complete(self._await_all(asked, waiting, at_once))
        self._say(DONE)

    async def _await_all(
        self, asked: Sequence[Asked], waiting: Sequence[tuple[int, Awaitable[Any]]], at_once: int
    ) -> None:
        free = asyncio.Semaphore(at_once)

        async def one(number: int, value: Awaitable[Any]) -> None:
            async with free:
                self._say(BEGUN, number)
                try:
                    async with asyncio.timeout(self._timeout) as limit:
                        found = await value
                    self._say(ANSWERED, number, _answers(found, asked[number][1]))
                except BaseException as error:  # noqa: BLE001 - as above
                    if limit.expired():
                        self._say(MISSING, number, f"gave no answer within {self._timeout:g} s")
                    else:
                        self._fail(number, error)

        await asyncio.gather(*(one(number, value) for number, value in waiting))

    def _fail(self, number: int, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self._say(MISSING, number, f"called sys.exit({'' if error.code is None else show(error.code)})")
        else:
            told = str(error).strip()
            self._say(MISSING, number, f"raised {type(error).__name__}" + (f": {told}" if told else ""))

    def _say(self, *message: Any) -> None:
        self._connection.send(message)


def _answers(value: Any, responses: str | list[str]) -> list[Answer]:
    """What a call gave for its response, or for each of a group's."""
    if isinstance(responses, str):
        return [_answer(value)]
    given = value.tolist() if hasattr(value, "tolist") else value  # NumPy's, a tensor's
    if not isinstance(given, list | tuple):
        return [f"gave {show(value)}, not a list of {len(responses)} scores"] * len(responses)
    if len(given) != len(responses):
        return [f"gave {len(given)} scores for {len(responses)} responses"] * len(responses)
    return [_answer(one) for one in given]


def _answer(value: Any) -> Answer:
    if value is None:
        return "gave no score"
    try:
        return finite_number(value)
    except ValueError as error:
        return f"gave {error}"


def _end_with(parent: int) -> None:
    """A parent that was killed tells nobody: this process ends when it has another one."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def main() -> None:
    """Serve one function until the other end of the connection is closed; the arguments are two open files."""
    connection, trace = Connection(int(sys.argv[1])), int(sys.argv[2])
    target, timeout, parent = connection.recv()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this process
    faulthandler.enable(trace, all_threads=False)
    faulthandler.register(signal.SIGUSR1, trace, all_threads=False)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        process = _Process(load_function(target), connection, timeout)
    except ValueError as error:
        connection.send((REFUSED, str(error)))
        return
    connection.send((READY,))
    while True:
        try:
            asked, at_once = connection.recv()
        except EOFError:
            return
        process.answer(asked, at_once)
