"""Requests of several callers in one batch: a scorer works best on many sequences of like length."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MergingBatcher(Generic[Item, Result]):
    """Whenever the scorer is free it takes everything that is waiting; each caller gets its share.

    There is no timer: while nobody else asks, a request runs at once, and under load batches grow by themselves. Order is
    kept within a request. After a failure each request runs alone, so that only the caller who caused it hears of it. All
    batches run in one thread: each further thread that computes would keep memory and worker threads of its own.
    """

    def __init__(self, run: Callable[[list[Item]], list[Result]], *, max_items: int) -> None:
        self._run = run
        self._max_items = max_items
        self._waiting: deque[tuple[Sequence[Item], Future[list[Result]]]] = deque()
        self._guard = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="merged")
        self.batches = 0

    def submit(self, items: Sequence[Item]) -> list[Result]:
        """The results of `items`, in order; blocks the calling thread."""
        mine: Future[list[Result]] = Future()
        with self._guard:
            self._waiting.append((items, mine))
        self._worker.submit(self._work)
        return mine.result()

    def _work(self) -> None:
        taken = self._take()
        if taken:
            self._answer(taken)

    def _answer(self, taken: list[tuple[Sequence[Item], Future[list[Result]]]]) -> None:
        try:
            results = self._run([item for items, _ in taken for item in items])
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            if len(taken) == 1:
                taken[0][1].set_exception(error)
                return
            for request in taken:
                self._answer([request])
            return
        self.batches += 1
        start = 0
        for items, future in taken:
            future.set_result(results[start : start + len(items)])
            start += len(items)

    def _take(self) -> list[tuple[Sequence[Item], Future[list[Result]]]]:
        """Whole requests from the front, up to `max_items` items; the first one in any case."""
        taken: list[tuple[Sequence[Item], Future[list[Result]]]] = []
        count = 0
        with self._guard:
            while self._waiting and (not taken or count + len(self._waiting[0][0]) <= self._max_items):
                taken.append(self._waiting.popleft())
                count += len(taken[-1][0])
        return taken
