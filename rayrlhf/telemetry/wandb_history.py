"""What a W&B run's files on this disk hold already, so that a resumed run goes on where they end."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER = 7
_BLOCK = 32 * 1024
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass(kw_only=True)
class Logged:
    """How far a W&B run has been logged."""

    next_step: int = 0
    """W&B's own `_step` of the next row."""
    rows: dict[str, int] = field(default_factory=dict)
    """By stage or track: the last step with metrics."""
    samples: dict[str, int] = field(default_factory=dict)
    """By kind of sample: the last step with a table."""


def logged_so_far(run_dir: Path, run_id: str) -> Logged:
    """From the files of every process that has written to the run; up to where a kill tore one."""
    logged = Logged()
    for path in sorted(run_dir.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")):
        for step, row in _history(path):
            logged.next_step = max(logged.next_step, step + 1)
            _note(logged, row)
    return logged


def _note(logged: Logged, row: dict[str, Any]) -> None:
    tables = {key.split("/")[1].split(".")[0] for key in row if key.startswith("samples/")}
    for key, value in row.items():
        track, _, name = key.rpartition("/")
        if name != "step":
            continue
        marks, names = (logged.samples, tables) if tables else (logged.rows, {track})
        for mark in names:
            marks[mark] = max(marks.get(mark, -1), int(value))


def _history(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield (
                record.history.step.num,
                {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items},
            )


def _records(data: bytes) -> Iterator[bytes]:
    """The records behind W&B's header of seven bytes, in the log framing of LevelDB."""
    position, pending = _HEADER, b""
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        piece = data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind == 0 or len(piece) < length:
            return
        pending = piece if kind in (_WHOLE, _FIRST) else pending + piece
        if kind in (_WHOLE, _LAST):
            yield pending
