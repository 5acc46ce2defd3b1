"""The batches trained since the last checkpoint, on disk: what a learner that starts anew is brought up to date with."""

import json
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayrlhf.errors import CheckpointError, StorageError
from rayrlhf.files import write_whole
from rayrlhf.types import ScoredTrajectory

_MAGIC = b"rayrlhf batch 1\n"


Calls = tuple[tuple[str, tuple[Any, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class SpooledUpdate:
    """One update that is done: its batch is in `path`, and what else was asked of the learner after it."""

    step: int
    path: Path
    before: Calls = ()
    """Methods that changed the learner between the checkpoint and this update, with their arguments, in order."""
    calls: Calls = ()
    """The same after the update."""
    digest: str = ""
    """Of the weights published after it."""
    driver_state: dict[str, Any] = field(default_factory=dict)


class ExperienceSpool:
    """A folder with one batch a file, in the order of the updates. A file is there whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def batch_path(self, step: int) -> Path:
        """Where the batch of update `step` lies."""
        return self._directory / f"update_{step:06d}.batch"

    @property
    def bytes(self) -> int:
        """Size of all batches."""
        return sum(path.stat().st_size for path in self._directory.glob("*.batch"))

    def complete(self, update: SpooledUpdate) -> None:
        """Say that an update is done, evaluated and logged: a resumed run may go on from it."""
        facts = {
            "before": update.before,
            "calls": update.calls,
            "digest": update.digest,
            "driver_state": update.driver_state,
        }
        _write(self._directory / f"update_{update.step:06d}.json", json.dumps(facts).encode())

    def updates(self, first: int) -> list[SpooledUpdate]:
        """The updates that are done from `first` on, without a gap; those whose batch cannot be read end the list."""
        found: list[SpooledUpdate] = []
        while True:
            step = first + len(found)
            try:
                facts = json.loads((self._directory / f"update_{step:06d}.json").read_text())
                if not _is_whole(self.batch_path(step)):
                    return found
            except (OSError, ValueError):
                return found
            for key in ("before", "calls"):
                facts[key] = tuple((method, tuple(arguments)) for method, arguments in facts[key])
            found.append(SpooledUpdate(step=step, path=self.batch_path(step), **facts))

    def forget(self, before: int) -> None:
        """Remove the updates before `before`: a checkpoint holds what came of them."""
        for path in self._directory.glob("update_*"):
            if int(path.stem.removeprefix("update_")) < before:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        for path in self._directory.glob("update_*"):
            path.unlink(missing_ok=True)


def write_batch(path: Path, scored: Sequence[ScoredTrajectory]) -> None:
    """Write a batch in one rename; StorageError where the disk does not take it."""
    body = pickle.dumps(list(scored), protocol=pickle.HIGHEST_PROTOCOL)
    _write(path, _MAGIC + zlib.crc32(body).to_bytes(4, "big") + body)


def read_batch(path: Path) -> list[ScoredTrajectory]:
    """What `write_batch` wrote; CheckpointError where the file is not whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The batch {path} cannot be read: {error.strerror or error}.") from None
    head, body = content[: len(_MAGIC) + 4], content[len(_MAGIC) + 4 :]
    if head != _MAGIC + zlib.crc32(body).to_bytes(4, "big"):
        raise CheckpointError(f"The batch {path} is torn or not one of ours: remove it and resume from the checkpoint.")
    batch: list[ScoredTrajectory] = pickle.loads(body)
    return batch


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(len(_MAGIC) + 4)
        crc = 0
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return head == _MAGIC + crc.to_bytes(4, "big")


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except StorageError as error:
        raise StorageError(
            f"{error} Or set checkpoint.spool=false, which gives up going on from the last update."
        ) from error
