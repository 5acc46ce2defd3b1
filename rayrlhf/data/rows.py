"""Rows that stay on disk: one is read when it is asked for, a column of all of them as an array."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa

from rayrlhf.files import storing

Record = TypeVar("Record")
Changed = TypeVar("Changed")

_BATCH = 1024
"""Rows of a record batch: few enough that the tokens of one stay far below what a 32-bit offset reaches."""


class Rows(Sequence[Record]):
    """Rows by their position, without the rows: whoever holds this holds no more than the columns it has asked for."""

    def __init__(self, size: int, read: Callable[[int], Record], column: Callable[[str], np.ndarray]) -> None:
        """`read` gives the row at a position, `column` a named column of all rows."""
        self._size = size
        self._read = read
        self._column = column
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> "Rows[Record]": ...
    def __getitem__(self, at: int | slice) -> "Record | Rows[Record]":
        if isinstance(at, slice):
            return self.pick(np.arange(self._size)[at])
        return self._read(range(self._size)[at])

    def column(self, name: str) -> np.ndarray:
        """[rows], or [rows, K] of a column of lists, those that are shorter filled up: whole numbers with -1, others with NaN."""
        if name not in self._columns:
            self._columns[name] = self._column(name)
        return self._columns[name]

    def pick(self, positions: np.ndarray) -> "Rows[Record]":
        """The rows at these positions, in this order; one may come more than once."""
        return Rows(len(positions), lambda i: self._read(int(positions[i])), lambda name: self.column(name)[positions])

    def loaded(self) -> "Rows[Record]":
        """The same rows, held in memory."""
        return Rows(self._size, list(self).__getitem__, self.column)

    def changed(self, change: Callable[[Record, int], Changed]) -> "Rows[Changed]":
        """Each row as what `change` makes of it and of its position; the columns stay as they are."""
        return Rows(self._size, lambda i: change(self._read(i), i), self.column)


class Codec(NamedTuple, Generic[Record]):
    """How records of one kind lie in Arrow."""

    schema: pa.Schema
    columns: Callable[[Sequence[Record]], dict[str, list]]
    """The columns of some records."""
    read: Callable[[pa.RecordBatch, int], Record]
    """The record at a place of a batch."""

    def in_memory(self, records: Sequence[Record]) -> Rows[Record]:
        """The records as rows, for those that are few and in no file."""
        return _rows(list(self._batches(records)), self.read)

    def open(self, paths: Iterable[Path]) -> Rows[Record]:
        """The rows of some files one after the other, memory-mapped."""
        readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        return _rows([r.get_batch(number) for r in readers for number in range(r.num_record_batches)], self.read)

    def write(self, path: Path, records: Sequence[Record]) -> None:
        """Write a file; StorageError where the disk does not take it."""
        with storing(path), path.open("wb") as file:
            with pa.ipc.new_file(file, self.schema) as writer:
                for batch in self._batches(records):
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())

    def _batches(self, records: Sequence[Record]) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(records), _BATCH):
            yield pa.RecordBatch.from_pydict(self.columns(records[start : start + _BATCH]), schema=self.schema)


def _rows(batches: Sequence[pa.RecordBatch], read: Callable[[pa.RecordBatch, int], Record]) -> Rows[Record]:
    ends = np.cumsum([0, *(batch.num_rows for batch in batches)])

    def at(position: int) -> Record:
        number = int(np.searchsorted(ends, position, side="right")) - 1
        return read(batches[number], position - int(ends[number]))

    return Rows(int(ends[-1]), at, lambda name: _joined([batch.column(name) for batch in batches]))


def _joined(parts: Sequence[pa.Array]) -> np.ndarray:
    if not parts:
        return np.zeros(0)
    if not isinstance(parts[0], pa.ListArray):
        return np.concatenate([part.to_numpy() for part in parts])
    lengths = np.concatenate([part.value_lengths().to_numpy() for part in parts])
    values = np.concatenate([part.flatten().to_numpy() for part in parts])
    filled = np.full((len(lengths), int(lengths.max())), -1 if values.dtype.kind == "i" else np.nan, dtype=values.dtype)
    filled[np.arange(filled.shape[1]) < lengths[:, None]] = values
    return filled
