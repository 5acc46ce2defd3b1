"""Files that are there whole or not at all, and what it means that a disk does not take one."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayrlhf.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one rename; StorageError where the disk does not take it."""
    partial = path.with_name(f".{path.name}.partial")
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="replace")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one rename."""
    write_whole(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False, default=float) + "\n")


def finite(value: Any) -> Any:
    """What JSON can hold: a number that is none becomes null, however deep it lies."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """What the system says within the block is said of `path`, as a StorageError."""
    try:
        yield
    except OSError as error:
        remedy = "make room on its disk" if error.errno in _FULL else "make its folder writable"
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; {remedy}.") from error
