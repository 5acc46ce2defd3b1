"""Binding a process to some cores: where roles share few, a learner on its own core is not interrupted by the others."""

import contextlib
import os
from collections.abc import Sequence

from rayrlhf.errors import ResourceError


def lacking(cores: Sequence[int], *, key: str) -> str | None:
    """What is wrong with these cores on this machine; nothing where it has them all."""
    count = os.cpu_count() or 1
    missing = [core for core in cores if core >= count]
    return f"{key}={list(cores)} names core {missing[0]}, and this machine has 0 to {count - 1}" if missing else None


def run_on(cores: Sequence[int], *, key: str) -> None:
    """Keep every thread of this process, and those that it will start, to `cores`, anywhere for none; ResourceError.

    `key` is what configures it.
    """
    if not cores:
        return
    problem = lacking(cores, key=key)
    if problem is not None:
        raise ResourceError(f"{problem}.")
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # one that has just ended
                os.sched_setaffinity(int(thread), cores)
    except OSError as error:
        raise ResourceError(f"{key}={list(cores)}: a process here may not run on them: {error.strerror}.") from error
