"""What a run has cost over all its processes: times, restarts, peak memory, tokens; on disk as it goes."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rayrlhf.errors import StorageError
from rayrlhf.files import write_json

ACCOUNT_FILE = "account.json"
_ROLES = ("rollout", "scoring", "learner")


def forget_stage(run_dir: Path, stage: str) -> None:
    """A stage that starts anew has cost nothing yet."""
    path = run_dir / ACCOUNT_FILE
    if path.exists():
        account = json.loads(path.read_text())
        account["stages"].pop(stage, None)
        write_json(path, account)


class RunAccount:
    """One process's part of the account, added to what the processes before it left in the file.

    From `with` to the end of the block a thread writes it every few seconds, so that a kill loses no more than those.
    """

    def __init__(self, run_dir: Path, *, peak_bytes: Callable[[], int], interval: float = 5.0) -> None:
        self._path = run_dir / ACCOUNT_FILE
        earlier = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._seconds = float(earlier.get("wall_seconds", 0.0))
        self._peak = int(earlier.get("peak_memory_bytes", 0))
        self._stages: dict[str, dict[str, Any]] = earlier.get("stages", {})
        self.processes = int(earlier.get("processes", 0)) + 1
        """Starts of the run, this one included."""
        self._peak_bytes = peak_bytes
        self._interval = interval
        self._started = time.monotonic()
        self._stage: str | None = None
        self._stage_started = 0.0
        self._watched: Callable[[], Mapping[str, int]] = dict
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._save_until_stopped, name="account", daemon=True)

    def __enter__(self) -> "RunAccount":
        self.save()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.save()
        except StorageError:
            if error is None:  # else what ended the run is the one to tell
                raise

    @contextlib.contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """The time of the block, and the restarts in it, are the stage's."""
        with self._lock:
            self._stage, self._stage_started, self._watched = stage, time.monotonic(), dict
        try:
            yield
        finally:
            with self._lock:
                self._stages[stage] = self._stage_facts(stage)
                self._stage, self._watched = None, dict

    def watch_restarts(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Have the replaced processes of each role, in this process's part of the stage, read from `counts`."""
        with self._lock:
            self._watched = counts

    def add_tokens(self, stage: str, track: str, tokens: int) -> None:
        """Tokens a track of the stage has trained on from its first step, which a later process cannot ask for."""
        with self._lock:
            self._stages.setdefault(stage, {}).setdefault("tokens", {})[track] = tokens

    def tokens(self, stage: str) -> int:
        """Tokens of all tracks of the stage."""
        return sum(self._stages.get(stage, {}).get("tokens", {}).values())

    def restarts(self, stage: str) -> dict[str, int]:
        """Processes of each role that were replaced in the stage, over the whole run."""
        with self._lock:
            earlier = self._stages.get(stage, {}).get("restarts", {})
            now = self._watched() if stage == self._stage else {}
            return {role: int(earlier.get(role, 0)) + int(now.get(role, 0)) for role in _ROLES}

    def stage_seconds(self, stage: str) -> float:
        """Wall-clock of the stage, over the whole run."""
        with self._lock:
            now = time.monotonic() - self._stage_started if stage == self._stage else 0.0
            return float(self._stages.get(stage, {}).get("wall_seconds", 0.0)) + now

    @property
    def wall_seconds(self) -> float:
        """Wall-clock of the run, over its processes."""
        return self._seconds + time.monotonic() - self._started

    @property
    def peak_memory_bytes(self) -> int:
        """Largest memory of any of its processes."""
        return max(self._peak, self._peak_bytes())

    def save(self) -> None:
        """Write the account so far, in one rename."""
        with self._lock:
            stages = dict(self._stages)
            if self._stage is not None:
                stages[self._stage] = self._stage_facts(self._stage)
            account = {
                "wall_seconds": self.wall_seconds,
                "peak_memory_bytes": self.peak_memory_bytes,
                "processes": self.processes,
                "stages": stages,
            }
            write_json(self._path, account)

    def _stage_facts(self, stage: str) -> dict[str, Any]:
        facts = {"wall_seconds": self.stage_seconds(stage), "restarts": self.restarts(stage)}
        return self._stages.get(stage, {}) | facts

    def _save_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            with contextlib.suppress(StorageError):  # the run itself will say what a full disk means
                self.save()
