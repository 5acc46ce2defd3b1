"""Rewards by a Python function, in a process of its own: whatever it does, the scoring worker lives on."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Literal

from rayrlhf.data.tokenizer import prompt_as_text
from rayrlhf.errors import ConfigError
from rayrlhf.reward import function_child as child
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing

_GRACE = 1.0
"""Seconds for a process to notice its own deadline, to say where it hangs, or to end."""
_IN_A_ROW = 3
"""Processes that end without a score, before the rest of a batch is not asked for."""
_SHOWN = 60


class FunctionTerm:
    """A function of (prompt, response, reference), or of a group's (prompt, responses, reference); asynchronous or not.

    What it raises, what is no finite number, a call longer than `timeout` seconds and one that ends its process are missing
    scores, each with a reason that names the function and the sample.
    """

    def __init__(
        self,
        target: str,
        *,
        per: Literal["response", "group"] = "response",
        timeout: float = 60.0,
        start_timeout: float = 300.0,
        concurrency: int = 64,
    ) -> None:
        """`concurrency` calls of an asynchronous function run together."""
        self.name = target
        self._per_group = per == "group"
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._concurrency = concurrency
        self._process: _FunctionProcess | None = None
        self._start()

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """One call a request, or a group, in order; those of an asynchronous function together."""
        calls = self._calls(requests)
        answers: dict[int, list[TermScore]] = {}
        at_once, in_vain = self._concurrency, 0
        while left := [number for number in range(len(calls)) if number not in answers]:
            before = len(answers)
            failure = self._ask(calls, left, answers, at_once)
            if failure is None:
                break
            in_vain = in_vain + 1 if len(answers) == before else 1
            if len(failure.running) == 1:
                number = failure.running[0]
                answers[number] = self._missing(calls[number], failure.told)
            at_once = 1  # Of several calls that ran together it shows one by one which it was.
            if in_vain == _IN_A_ROW:
                told = f"{failure.told}, {in_vain} times in a row"
                answers |= {number: self._missing(calls[number], told) for number in left if number not in answers}
        scores = {
            place: score
            for number, call in enumerate(calls)
            for place, score in zip(call.places, answers[number], strict=True)
        }
        return [scores[place] for place in range(len(requests))]

    def _calls(self, requests: Sequence[ScoreRequest]) -> list["_Call"]:
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.group if self._per_group else place, []).append(place)
        return [_Call(places, [requests[place] for place in places]) for places in groups.values()]

    def _missing(self, call: "_Call", told: str) -> list[TermScore]:
        return [self._missing_one(request, told) for request in call.requests]

    def _missing_one(self, request: ScoreRequest, told: str) -> TermScore:
        prompt = prompt_as_text(request.prompt)
        prompt = prompt if len(prompt) <= _SHOWN else prompt[:_SHOWN] + "..."
        return missing(f"{self.name} {told}, for sample {request.name} (prompt {prompt!r})")

    def _ask(
        self, calls: Sequence["_Call"], left: Sequence[int], answers: dict[int, list[TermScore]], at_once: int
    ) -> "_Failure | None":
        """Fill in the answers to those left as they come; what ended the process before the last, if anything did."""
        process = self._process or self._start()
        running: list[int] = []
        try:
            process.send([self._arguments(calls[number]) for number in left], at_once)
            while True:
                kind, *message = process.receive(self._timeout + _GRACE)
                if kind == child.DONE:
                    return None
                number = left[message[0]]
                if kind == child.BEGUN:
                    running.append(number)
                    continue
                running.remove(number)
                if kind == child.ANSWERED:
                    given = zip(calls[number].requests, message[1], strict=True)
                    answers[number] = [self._score(request, answer) for request, answer in given]
                elif kind == child.MISSING:
                    answers[number] = self._missing(calls[number], message[1])
        except TimeoutError:
            told = f"gave no answer within {self._timeout:g} s{process.interrupt()}"
        except (EOFError, OSError):
            told = process.ending()
        self._process = None
        return _Failure(told, running)

    def _score(self, request: ScoreRequest, answer: child.Answer) -> TermScore:
        return self._missing_one(request, answer) if isinstance(answer, str) else TermScore(value=answer)

    def _arguments(self, call: "_Call") -> child.Asked:
        responses, first = [request.response for request in call.requests], call.requests[0]
        return prompt_as_text(first.prompt), responses if self._per_group else responses[0], first.reference

    def _start(self) -> "_FunctionProcess":
        self._process = _FunctionProcess(self.name, self._timeout, self._start_timeout)
        return self._process


@dataclass(frozen=True)
class _Call:
    """One call of the function, for what is in these places of a batch."""

    places: list[int]
    requests: list[ScoreRequest]


@dataclass(frozen=True)
class _Failure:
    """What ended a function's process, and the calls that had begun."""

    told: str
    running: list[int]


class _FunctionProcess:
    """The other end of `function_child`; ConfigError where the function cannot be had."""

    def __init__(self, target: str, timeout: float, start_timeout: float) -> None:
        self._module = target.partition(":")[0].rpartition(".")[2]
        self._connection, theirs = Pipe()
        self._trace: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        handles = (theirs.fileno(), self._trace.fileno())
        start = f"import sys; sys.path[:] = {sys.path!r}; from {child.__name__} import main; main()"
        command = [sys.executable, "-c", start, *map(str, handles)]
        self._process = subprocess.Popen(command, pass_fds=handles, stdin=subprocess.DEVNULL)
        theirs.close()
        weakref.finalize(self, _end, self._process, self._connection, self._trace)
        try:
            self._connection.send((target, timeout, os.getpid()))
            kind, *message = self.receive(start_timeout)
        except TimeoutError:
            told = f"its module is not done within scoring.start_timeout={start_timeout:g} s{self.interrupt()}"
            raise ConfigError(f"The reward function {target} cannot be imported: {told}.") from None
        except (EOFError, OSError):
            told = f"its module {self.ending()}"
            raise ConfigError(f"The reward function {target} cannot be imported: {told}.") from None
        if kind == child.REFUSED:
            raise ConfigError(message[0])

    def send(self, asked: Sequence[child.Asked], at_once: int) -> None:
        """Ask for the calls' answers."""
        self._connection.send((asked, at_once))

    def receive(self, timeout: float) -> tuple[Any, ...]:
        """The next message; TimeoutError after `timeout` seconds, EOFError where the process has ended."""
        if not self._connection.poll(timeout):
            raise TimeoutError
        message: tuple[Any, ...] = self._connection.recv()
        return message

    def interrupt(self) -> str:
        """End the process; the line it was in, as far as it can say that."""
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _GRACE
        while not os.fstat(self._trace.fileno()).st_size and time.monotonic() < deadline:
            time.sleep(0.01)
        self._process.kill()
        self._process.wait()
        return self._line()

    def ending(self) -> str:
        """How the process ended, and in which line, as far as it could say that."""
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return f"closed the connection of its process{self.interrupt()}"
        if status >= 0:
            return f"ended its process with status {status}"
        name = signal.Signals(-status).name
        told = {"SIGSEGV": " (a segmentation fault)", "SIGKILL": " (perhaps for want of memory)"}.get(name, "")
        return f"ended its process by {name}{told}{self._line()}"

    def _line(self) -> str:
        """Of the function's own module, if it says of any."""
        self._trace.seek(0)
        frames = re.findall(r'File "([^"]+)", line (\d+)', self._trace.read().decode(errors="replace"))
        own = [frame for frame in frames if Path(frame[0]).stem == self._module]
        return next((f" in {Path(file).name}, line {line}" for file, line in [*own, *frames]), "")


def _end(process: subprocess.Popen[bytes], connection: Connection, trace: IO[bytes]) -> None:
    connection.close()
    trace.close()
    process.kill()
    process.wait()
