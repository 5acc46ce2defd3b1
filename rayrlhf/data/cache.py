"""What was prepared once is found again: folders by a digest of all they depend on, whole or not there, made in processes of
their own.

A folder may be deleted at any time between runs: it is made again.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from rayrlhf.config import RunConfig
from rayrlhf.errors import DeadlineError, StorageError, WorkerError
from rayrlhf.files import storing, write_json

Job = TypeVar("Job")
Answer = TypeVar("Answer")

_FACTS = "facts.json"
_BLOCK = 2**20
_ABANDONED = 24 * 3600.0
"""Seconds after which an entry that is still being made is one that somebody left behind."""


def cache_folder(config: RunConfig) -> Path:
    """Where a run's prepared data lies."""
    return Path(config.output_dir) / ".data" if config.data.cache is None else Path(config.data.cache).expanduser()


def digest(*parts: Any) -> str:
    """Of anything that JSON can hold, and of the code that reads data."""
    written = json.dumps([_code(), parts], sort_keys=True)
    return blake2b(written.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Of a file's content."""
    found = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def entry(folder: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder of a key and its facts; where it is not there or damaged, `make` fills one and answers with the facts.

    Made beside its place and renamed: of several processes that make the same, one is first and all read the same.
    StorageError where the disk does not take it.
    """
    place = folder / key
    facts = _facts(place)
    if facts is not None:
        return place, facts
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    try:
        facts = make(making)
        sizes = {file.name: file.stat().st_size for file in making.iterdir()}
        write_json(making / _FACTS, {"facts": facts, "sizes": sizes})
        _put(making, place)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    facts = _facts(place)
    if facts is None:
        raise StorageError(f"{place} was damaged while it was written; give another folder, data.cache.")
    return place, facts


def in_processes(
    work: Callable[[Job], Answer], jobs: Sequence[Job], *, what: str, processes: int, timeout: float
) -> list[Answer]:
    """The answers of as many processes, in order; what one of them raises is raised here, and none outlives the call."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_begin)
    try:
        answers = list(pool.map(work, jobs, timeout=timeout))
        pool.shutdown()
        return answers
    except TimeoutError:
        raise DeadlineError(f"{what} took longer than data.prepare_timeout={timeout:g} s: raise it.") from None
    except BrokenProcessPool:
        raise WorkerError(f"A process died in {what}: most likely the machine's memory was full.") from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()


def _begin() -> None:
    """A process that leaves an interrupt to its parent, and ends with it however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """Of the files beside this one: what other code has read is not what this code would read."""
    return "".join(file_digest(path) for path in sorted(Path(__file__).parent.glob("*.py")))


def _facts(place: Path) -> dict[str, Any] | None:
    """The facts of a folder that has all its files at their full length; else None."""
    try:
        found = json.loads((place / _FACTS).read_bytes())
        whole = all((place / name).stat().st_size == size for name, size in found["sizes"].items())
        return found["facts"] if whole else None
    except (OSError, ValueError, KeyError):
        return None


def _put(making: Path, place: Path) -> None:
    with storing(place):
        try:
            making.rename(place)
        except OSError:  # somebody was first, or a damaged one is in the way
            if _facts(place) is None:
                shutil.rmtree(place)
                making.rename(place)


def _sweep(folder: Path) -> None:
    for left in folder.glob(".making-*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
