"""Memory of all processes of a run, shared pages counted once; what is on other machines is asked for."""

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType

import psutil


class MemorySampler:
    """Samples this process and its descendants from a thread, from `with` to the end of the block."""

    def __init__(self, interval: float = 5.0) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="memory", daemon=True)
        self._elsewhere: Callable[[], int] = int
        self._reading = threading.Lock()
        self.peak_bytes = 0
        self.current_bytes = 0

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def watch(self, elsewhere: Callable[[], int]) -> None:
        """Count also what `elsewhere` answers, in bytes: processes that are not descendants of this one.

        What was watched until now is not asked again once this returns.
        """
        with self._reading:
            self._elsewhere = elsewhere

    def sample(self) -> int:
        """Bytes in use now."""
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _resident(process)
        with self._reading:
            total += self._elsewhere()
        self.current_bytes = total
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def _sample_until_stopped(self) -> None:
        self.sample()
        while not self._stop.wait(self._interval):
            self.sample()


def bytes_below(parent: int, name: str, value: str) -> int:
    """Bytes in use by those descendants of a process that were started with that environment variable."""
    total = 0
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            if process.environ().get(name) == value:
                total += _resident(process)
    return total


def _resident(process: psutil.Process) -> int:
    """The process's share of physical memory, so that a page shared by n processes counts 1/n in each.

    Its whole resident set where the system tells no shares.
    """
    try:
        info = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(info, "pss", 0) or info.rss)
