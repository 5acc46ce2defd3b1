"""A run's control desk: where others read how it does, and leave what they want of it."""

import asyncio
import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rayrlhf.actors.calls import resolve_blocking
from rayrlhf.actors.placement import clerk_options, end, spawn
from rayrlhf.errors import ConfigError, RayrlhfError, WorkerError

NAMESPACE = "rayrlhf"
_ANSWER_SECONDS = 30.0
_EXCHANGE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """Something that is wanted of a run."""

    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the run says to a request: done, or why not."""

    text: str
    refused: bool = False


class ControlActor:
    """Holds the driver's newest status and passes requests on to it. Everything it knows, the driver knows better."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._waiting: dict[int, Request] = {}
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._asked = 0
        self._changed = asyncio.Condition()

    def __repr__(self) -> str:
        """What Ray puts before each line that the process logs."""
        return "control"

    async def exchange(self, status: dict[str, Any], answers: dict[int, Answer], wait: float) -> dict[int, Request]:
        """The driver's call: its status, its answers; waits at most `wait` seconds for requests."""
        self._status = status
        for number, answer in answers.items():
            if number in self._answers:
                self._answers[number].set_result(answer)
        async with self._changed:
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait_for(lambda: self._waiting)
            except TimeoutError:
                pass
            taken, self._waiting = self._waiting, {}
        return taken

    async def status(self) -> dict[str, Any]:
        """The driver's newest status."""
        return self._status

    async def ask(self, request: Request) -> Answer:
        """Leave a request and wait for its answer."""
        async with self._changed:
            self._asked += 1
            number = self._asked
            self._waiting[number] = request
            self._answers[number] = asyncio.Future()
            self._changed.notify_all()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._answers[number]
        except TimeoutError:
            return Answer(text=f"The run's driver gave no answer within {_ANSWER_SECONDS:.0f} s.", refused=True)
        finally:
            del self._answers[number]


class ControlDesk:
    """The driver's side; its calls block, for a thread of their own."""

    def __init__(self, run: str) -> None:
        self.name = f"{run}.{secrets.token_hex(3)}"
        self._actor = self._spawn()

    def exchange(self, status: dict[str, Any], answers: dict[int, Answer], wait: float) -> dict[int, Request]:
        """Show the status, give answers, take requests; another desk is opened where this one is gone or does not answer."""
        try:
            asked = self._actor.exchange.remote(status, answers, wait)
            found: dict[int, Request] = ray.get(asked, timeout=wait + _EXCHANGE_SECONDS)
        except RayError:
            end(self._actor)
            # Its name is free once Ray has taken note of its end: if not yet, then at the next exchange.
            with contextlib.suppress(RayError):
                self._actor = self._spawn()
            time.sleep(wait)
            return {}
        return found

    def _spawn(self) -> Any:
        # Beside the driver: a node that goes must not take the desk along.
        options = clerk_options(ray.get_runtime_context().get_node_id()) | {
            "namespace": NAMESPACE,
            "max_concurrency": 64,
        }
        return spawn(ControlActor, options, name=self.name)


class Visitor:
    """Somebody who wants something of a run that is under way, perhaps on another machine of its cluster."""

    def __init__(self, run: str, actor: str | None = None) -> None:
        """`run` is its name; `actor` that of its desk, where it is known. ConfigError where there is no such run."""
        names = [n["name"] for n in ray.util.list_named_actors(all_namespaces=True) if n["namespace"] == NAMESPACE]
        fit = [name for name in names if name == actor or (actor is None and name.rpartition(".")[0] == run)]
        if not fit:
            others = ", ".join(sorted(name.rpartition(".")[0] for name in names)) or "none"
            raise ConfigError(f"No run {run} is under way on this cluster (runs under way: {others}).")
        if len(fit) > 1:
            raise ConfigError(f"Several runs called {run} are under way on this cluster: name the one by its folder.")
        self._run = run
        self._actor = ray.get_actor(fit[0], namespace=NAMESPACE)

    def status(self) -> dict[str, Any]:
        """The run's status; WorkerError where it has ended meanwhile."""
        found: dict[str, Any] = self._call("status")
        return found

    def ask(self, kind: str, **arguments: Any) -> str:
        """Have the run do something; what it answers, ConfigError where it refuses."""
        answer: Answer = self._call("ask", Request(kind=kind, arguments=arguments))
        if answer.refused:
            raise ConfigError(answer.text)
        return answer.text

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return resolve_blocking(
                getattr(self._actor, method).remote(*args),
                what=f"run {self._run} ({method})",
                timeout=_ANSWER_SECONDS + 5.0,
            )
        except RayrlhfError as error:
            if isinstance(error, WorkerError):
                raise WorkerError(f"The run {self._run} has ended: {error}") from error
            raise


def here() -> dict[str, Any]:
    """Where this driver's cluster is found, and whether it asks for Ray's token."""
    return {
        "address": ray.get_runtime_context().gcs_address,
        "auth_mode": os.environ.get("RAY_AUTH_MODE"),
        "namespace": NAMESPACE,
        "pid": os.getpid(),
    }
