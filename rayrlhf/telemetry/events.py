"""What happens to a run beside its steps: one record, told in one place to everybody."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

EVENTS_FILE = "events.jsonl"

Kind = Literal["death", "replacement", "scale", "swap", "checkpoint", "loss", "spill", "guard", "stop", "wait"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a role, a worker or the run as a whole."""

    kind: Kind
    text: str
    """One sentence of ours."""
    role: str | None = None
    number: int | None = None
    """Of the worker."""
    node: str | None = None
    """Id of its node."""
    pid: int | None = None
    step: int | None = None
    time: float = field(default_factory=time.time)


class EventLog:
    """Keeps the newest events for `status`, writes all of them down, and hands each to those who tell it."""

    def __init__(self, run_dir: Path, *, listeners: list[Callable[[Event], None]], keep: int = 50) -> None:
        self._path = run_dir / EVENTS_FILE
        self._listeners = listeners
        self._keep = keep
        self.newest: list[Event] = []

    def tell(self, event: Event) -> None:
        """Write the event down and tell it; a disk that is full is told by what fails on it, not here."""
        self.newest = [*self.newest, event][-self._keep :]
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(event)) + "\n")
        except OSError:
            pass
        for listener in self._listeners:
            listener(event)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of a run, over its starts; a torn last line is left out."""
    path = run_dir / EVENTS_FILE
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
