"""The one checkpoint format: a directory that exists under its name only when it is complete."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.errors import CheckpointError
from rayrlhf.files import storing

_MARKER = "COMPLETE"
_DRIVER_STATE = "driver.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint after `step` steps."""

    step: int
    directory: Path
    driver_state: dict[str, Any]


class CheckpointStore:
    """Checkpoints of one stage: `step_000040/` with the learner's files, the driver's state and the marker.

    A checkpoint is written to a temporary sibling, synced to disk, marked and renamed; a kill at any moment leaves
    either the whole of it or nothing under its name. Samples in flight are not saved: a resumed run draws them anew.
    """

    def __init__(self, root: Path, *, keep: int) -> None:
        self._root = root
        self._keep = keep

    @contextlib.contextmanager
    def write(self, step: int, driver_state: dict[str, Any]) -> Iterator[Path]:
        """Yield the directory to write the learner's files into; complete when the block ends without an error."""
        self._root.mkdir(parents=True, exist_ok=True)
        final = self._root / f"step_{step:06d}"
        temporary = self._root / f".step_{step:06d}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            (temporary / _DRIVER_STATE).write_text(json.dumps({"step": step, **driver_state}))
            files = {
                str(path.relative_to(temporary)): path.stat().st_size
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            if len(files) == 1:
                raise CheckpointError(
                    f"The learner's files did not arrive in {temporary}: output_dir must be on storage that every "
                    f"node shares."
                )
            for name in files:
                _sync(temporary / name)
            (temporary / _MARKER).write_text(json.dumps(files))
            _sync(temporary / _MARKER)
            _sync(temporary)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            with storing(final):
                raise
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync(self._root)
        self._prune()

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest complete checkpoint, and the names of newer ones that are not complete."""
        skipped: list[str] = []
        for directory in sorted(self._root.glob("step_*"), reverse=True):
            if self._complete(directory):
                state = json.loads((directory / _DRIVER_STATE).read_text())
                return Checkpoint(step=state.pop("step"), directory=directory, driver_state=state), skipped
            skipped.append(directory.name)
        return None, skipped

    def _complete(self, directory: Path) -> bool:
        try:
            files: dict[str, int] = json.loads((directory / _MARKER).read_text())
            return all((directory / name).stat().st_size == size for name, size in files.items())
        except (OSError, ValueError):
            return False

    def _prune(self) -> None:
        complete = [d for d in sorted(self._root.glob("step_*"), reverse=True) if self._complete(d)]
        for directory in complete[self._keep :]:
            shutil.rmtree(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
