"""The services of a Ray that a driver starts for its own run: they are its children, and a run does not outlive them."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil
import ray

from rayrlhf.errors import WorkerError

_LOOK_SECONDS = 0.5
_END_SECONDS = 5.0
_VITAL = {"raylet": "raylet", "gcs_server": "control service (GCS)"}
"""Services without which nothing of a run goes on, and what they are called."""


@contextlib.contextmanager
def group_of_their_own() -> Iterator[None]:
    """Have Ray's services start, within the block, in other process groups than the driver's.

    `timeout`, a scheduler or a shell ends a whole group with SIGTERM: with its Ray gone at the same moment the driver could
    neither unwind nor say a word.
    """
    usual = ray._private.services.ConsolePopen
    ray._private.services.ConsolePopen = partial(usual, process_group=0)
    try:
        yield
    finally:
        ray._private.services.ConsolePopen = usual


async def watch_services() -> None:
    """Runs until cancelled; WorkerError as soon as a service of the Ray that this driver has started is gone.

    Ray itself ends a driver without a word seconds or a minute after that. Services of a cluster that was joined are not
    looked at.
    """
    processes = _services()
    while True:
        for told, process in processes:
            status = process.poll()
            if status is not None:
                how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                raise WorkerError(
                    f"The {told} of the Ray on this machine (pid {process.pid}) has ended ({how}), and a run ends with it."
                )
        await asyncio.sleep(_LOOK_SECONDS)


def end_services() -> None:
    """Leave Ray; of one that this driver has started no process is left, in whatever state its services are."""
    family = [psutil.Process(process.pid) for _, process in _services() if process.poll() is None]
    for service in list(family):
        with contextlib.suppress(psutil.NoSuchProcess):
            family += service.children(recursive=True)
    ray.shutdown()
    _, left = psutil.wait_procs(family, timeout=_END_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _services() -> list[tuple[str, Any]]:
    node = ray._private.worker._global_node
    if node is None:
        return []
    return [(told, info.process) for kind, told in _VITAL.items() for info in node.all_processes.get(kind, [])]
