"""A run under control from outside: it shows its status and does what it is asked, while it goes on."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rayrlhf.actors.control import Answer, ControlDesk, Request, here
from rayrlhf.errors import RayrlhfError
from rayrlhf.files import write_json
from rayrlhf.telemetry.events import Event, EventLog

RUN_FILE = "run.json"
_WAIT_SECONDS = 1.0
_CARRY_OUT_SECONDS = 20.0

Snapshot = Callable[[], dict[str, Any]]
CarryOut = Callable[[Request], Awaitable[str]]


class RunControl:
    """From `with` to the end of the block a thread shows how the run does and carries requests to it."""

    def __init__(self, run_dir: Path, run: str, events: EventLog) -> None:
        self._run_dir = run_dir
        self._run = run
        self._events = events
        self._stage: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._carry_out: CarryOut | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._began: tuple[float, int] | None = None
        self.stop_asked = False
        """Somebody wants the run to end at its next step, with a checkpoint."""

    def __enter__(self) -> "RunControl":
        self._desk = ControlDesk(self._run)
        facts = here() | {
            "run": self._run,
            "actor": self._desk.name,
            "host": socket.gethostname(),
            "since": time.time(),
        }
        write_json(self._run_dir / RUN_FILE, facts)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=_WAIT_SECONDS + 5.0)
        with contextlib.suppress(OSError):
            (self._run_dir / RUN_FILE).unlink(missing_ok=True)

    def at(self, stage: str, step: int, total: int) -> None:
        """The stage is at this step."""
        now = time.monotonic()
        if self._stage.get("stage") != stage or self._began is None:
            self._began = (now, step)
        done = step - self._began[1]
        left = (now - self._began[0]) / done * (total - step) if done > 0 else None
        self._stage = {"stage": stage, "step": step, "total": total, "eta_seconds": left}

    @contextlib.contextmanager
    def attached(self, snapshot: Snapshot, carry_out: CarryOut) -> Any:
        """Within the block, `snapshot` adds to the status, and `carry_out` does, in this event loop, what is asked."""
        self._loop = asyncio.get_running_loop()
        self._snapshot, self._carry_out = snapshot, carry_out
        try:
            yield
        finally:
            self._snapshot = self._carry_out = self._loop = None

    def _serve(self) -> None:
        answers: dict[int, Answer] = {}
        while not self._ended.is_set():
            requests = self._desk.exchange(self._status(), answers, _WAIT_SECONDS)
            answers = {number: self._answer(request) for number, request in requests.items()}

    def _status(self) -> dict[str, Any]:
        status = {"run": self._run, "time": time.time(), "stopping": self.stop_asked, **self._stage}
        status["events"] = [{"time": event.time, "text": event.text} for event in self._events.newest[-8:]]
        snapshot = self._snapshot
        return status | (snapshot() if snapshot is not None else {})

    def _answer(self, request: Request) -> Answer:
        if request.kind == "stop":
            self.stop_asked = True
            text = f"{self._run} stops after the step in progress, with a checkpoint."
            self._events.tell(Event(kind="stop", text=text))
            return Answer(text=text)
        carry_out, loop = self._carry_out, self._loop
        if carry_out is None or loop is None:
            stage = self._stage.get("stage", "starting")
            return Answer(
                text=f"{self._run} is at stage {stage}, which has no workers to {request.kind}.", refused=True
            )
        try:
            done = asyncio.run_coroutine_threadsafe(_await(carry_out(request)), loop)
            return Answer(text=done.result(_CARRY_OUT_SECONDS))
        except RayrlhfError as error:
            return Answer(text=str(error), refused=True)
        except TimeoutError:
            return Answer(
                text=f"{self._run} is busy and has not done it within {_CARRY_OUT_SECONDS:.0f} s.", refused=True
            )


async def _await(work: Awaitable[str]) -> str:
    return await work
