"""Many callers, one scorer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayrlhf.reward.merging import MergingBatcher


def test_requests_that_wait_run_together_and_each_gets_its_own() -> None:
    seen: list[int] = []
    release = threading.Event()

    def run(items: list[int]) -> list[int]:
        seen.append(len(items))
        release.wait(10.0)
        return [10 * item for item in items]

    batcher = MergingBatcher(run, max_items=100)
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(batcher.submit, [0])
        while not seen:
            time.sleep(0.01)
        others = [threads.submit(batcher.submit, [i, -i]) for i in range(1, 9)]
        while len(batcher._waiting) < 8:
            time.sleep(0.01)
        release.set()
        assert first.result(10.0) == [0]
        assert [other.result(10.0) for other in others] == [[10 * i, -10 * i] for i in range(1, 9)]
    assert seen == [1, 16]


def test_a_batch_has_its_limit_and_a_large_request_runs_whole() -> None:
    seen: list[int] = []
    release = threading.Event()

    def run(items: list[int]) -> list[int]:
        seen.append(len(items))
        release.wait(10.0)
        return items

    batcher = MergingBatcher(run, max_items=4)
    with ThreadPoolExecutor(5) as threads:
        futures = [threads.submit(batcher.submit, [0])]
        while not seen:
            time.sleep(0.01)
        for size in (3, 3, 9):
            futures.append(threads.submit(batcher.submit, list(range(size))))
            while len(batcher._waiting) < len(futures) - 1:
                time.sleep(0.01)
        release.set()
        assert [len(future.result(10.0)) for future in futures] == [1, 3, 3, 9]
    assert seen == [1, 3, 3, 9]


def test_a_failure_reaches_the_one_who_caused_it_and_nobody_else() -> None:
    calls: list[list[int]] = []
    release = threading.Event()

    def run(items: list[int]) -> list[int]:
        calls.append(items)
        release.wait(10.0)
        if 13 in items:
            raise ValueError("thirteen")
        return items

    batcher = MergingBatcher(run, max_items=10)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(batcher.submit, [0])]
        while not calls:
            time.sleep(0.01)
        for items in ([1, 2], [13, 3], [4]):
            futures.append(threads.submit(batcher.submit, items))
            while len(batcher._waiting) < len(futures) - 1:
                time.sleep(0.01)
        release.set()
        with pytest.raises(ValueError, match="thirteen"):
            futures[2].result(10.0)
        assert [futures[i].result(10.0) for i in (0, 1, 3)] == [[0], [1, 2], [4]]
    assert calls == [[0], [1, 2, 13, 3, 4], [1, 2], [13, 3], [4]]
    assert batcher.submit([]) == []


def test_under_load_nothing_is_lost_or_exchanged_and_one_thread_works() -> None:
    workers = set()

    def run(items: list[int]) -> list[int]:
        workers.add(threading.get_ident())
        time.sleep(0.001)
        return [item + 1 for item in items]

    batcher = MergingBatcher(run, max_items=64)
    with ThreadPoolExecutor(16) as threads:
        requests = [list(range(i, i + i % 7)) for i in range(300)]
        assert list(threads.map(batcher.submit, requests)) == [[x + 1 for x in request] for request in requests]
    assert batcher.batches < 300
    assert len(workers) == 1
