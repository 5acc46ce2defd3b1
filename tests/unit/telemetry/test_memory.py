import contextlib
import mmap
import os
import subprocess
import sys
import time

import psutil
import pytest

from rayrlhf.telemetry.memory import MemorySampler, bytes_below

MIB = 2**20


@contextlib.contextmanager
def child(code, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


def test_memory_of_a_grandchild_counts():
    nested = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'block = b\"x\" * {200 * MIB}; print(1, flush=True); input()'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "p.stdout.readline()"
    )
    before = MemorySampler().sample()
    with MemorySampler(interval=0.02) as sampler:
        with child(nested):
            deadline = time.monotonic() + 10
            while sampler.peak_bytes < before + 200 * MIB:
                assert time.monotonic() < deadline, (sampler.peak_bytes - before) / MIB
                time.sleep(0.02)
        deadline = time.monotonic() + 10
        while sampler.current_bytes > before + 100 * MIB:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert 200 * MIB < sampler.peak_bytes - before < 320 * MIB


@pytest.mark.skipif(not hasattr(psutil.Process().memory_full_info(), "pss"), reason="no proportional set size here")
def test_shared_pages_count_once(tmp_path):
    path = tmp_path / "shared"
    path.write_bytes(b"x" * (120 * MIB))
    touch = (
        f"import mmap\nf = open({str(path)!r}, 'rb')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsum(m[::4096])"
    )
    with child(""), child(""), open(path, "rb") as file:
        idle = MemorySampler().sample()
        with child(touch), child(touch), mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert sum(mapped[::4096]) > 0
            grown = MemorySampler().sample() - idle
    assert 120 * MIB < grown < 200 * MIB


def test_processes_that_vanish_do_not_stop_the_sampler():
    with MemorySampler(interval=0.001) as sampler:
        for _ in range(30):
            subprocess.run(["true"], check=True)
        sampler.current_bytes = 0
        deadline = time.monotonic() + 10
        while sampler.current_bytes == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert sampler.peak_bytes >= sampler.current_bytes > 0


def test_what_is_elsewhere_counts_until_something_else_is_watched():
    sampler = MemorySampler()
    own = sampler.sample()
    sampler.watch(lambda: 2**40)
    assert sampler.sample() > 2**40
    sampler.watch(int)
    assert sampler.sample() < 2 * own


def test_descendants_are_told_apart_by_what_they_were_started_with():
    def found() -> int:
        return bytes_below(os.getpid(), "A_JOB_OF_THESE_TESTS", "one")

    assert found() == 0
    block = f"block = b'x' * {100 * MIB}"
    with child(block, A_JOB_OF_THESE_TESTS="one") as ours, child(block, A_JOB_OF_THESE_TESTS="two"):
        assert 100 * MIB < found() < 150 * MIB
        assert bytes_below(ours.pid, "A_JOB_OF_THESE_TESTS", "one") == 0
