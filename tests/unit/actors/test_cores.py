"""Binding to cores, in processes of their own."""

import os
import subprocess
import sys

import pytest

from rayrlhf.actors.cores import lacking, run_on
from rayrlhf.errors import ResourceError

BOUND = """
import os, threading
from rayrlhf.actors.cores import run_on
release = threading.Event()
threading.Thread(target=release.wait).start()
run_on([{core}], key="learner.cores")
threading.Thread(target=release.wait).start()
print({{tuple(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}})
release.set()
"""


def test_every_thread_is_bound_those_before_and_those_after() -> None:
    core = max(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, "-c", BOUND.format(core=core)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str({(core,)})


def test_no_cores_bind_nothing() -> None:
    before = os.sched_getaffinity(0)
    run_on([], key="learner.cores")
    assert os.sched_getaffinity(0) == before


def test_a_core_that_is_not_there_is_named() -> None:
    assert lacking([0], key="learner.cores") is None
    with pytest.raises(ResourceError, match=r"learner.cores=\[9999\] names core 9999, and this machine has 0 to \d+\."):
        run_on([9999], key="learner.cores")
