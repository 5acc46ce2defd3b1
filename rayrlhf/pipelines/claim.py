"""One driver at a time: the claim on a run's name, which does not move with the run's folder."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rayrlhf.errors import CheckpointError, ConfigError

_HEARTBEAT_SECONDS = 4.0
_WATCHED_SECONDS = 3 * _HEARTBEAT_SECONDS
"""How long another machine's record is watched for a sign of life."""


@contextlib.contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Hold the run in the folder `root` to the end of the block; CheckpointError if another driver holds it.

    The lock lies beside the folder, so that moving the folder moves no lock. The kernel drops it with the process,
    however that ends. Machines that share a file system may not see each other's locks: the record in the file says
    whose it is, and the holder touches it as long as it lives.
    """
    path = root.with_name(f".{root.name}.lock")
    file = _locked(path, root)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(file, stop), name="claim", daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path, root: Path) -> TextIO:
    while True:
        file = _open(path)
        locks = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(_refusal(root, _read(file))) from None
        except OSError:
            locks = False  # a file system without locks: the record is all there is
        if not _same_file(file, path):
            file.close()  # its holder let go of the file between the two calls
            continue
        other = _read(file)
        if other and not (locks and other.get("machine") == _machine()) and _lives(path):
            raise CheckpointError(_refusal(root, other))
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "machine": _machine()}, file)
        file.flush()
        os.fsync(file.fileno())
        return file


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+")
    except OSError as error:
        raise ConfigError(
            f"output_dir={path.parent} cannot hold a run's folder: {error.strerror or error}; name a folder that can be "
            f"written to."
        ) from None


def _beat(file: TextIO, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file.fileno())


def _lives(path: Path) -> bool:
    """Whether somebody touches the file while we look: no two machines' clocks are compared."""
    with contextlib.suppress(OSError):
        before = _touched(path)
        until = time.monotonic() + _WATCHED_SECONDS
        while time.monotonic() < until:
            time.sleep(_HEARTBEAT_SECONDS / 4)
            if _touched(path) != before:
                return True
    return False


def _touched(path: Path) -> int:
    with open(path) as file:  # opening has a network file system ask its server again
        return os.fstat(file.fileno()).st_mtime_ns


def _same_file(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """Which running kernel this is: under one kernel a lock is the whole truth, whatever hosts are called."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _refusal(root: Path, record: dict[str, Any]) -> str:
    who = ""
    if record:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.get("since", 0.0)))
        who = f" (process {record.get('pid')} on {record.get('host')}, since {since})"
    return f"Another run is writing to {root}{who}: wait for it, stop it, or give this one another name (name=...)."
