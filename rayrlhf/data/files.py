"""Rows of one local file, each with the line it came from."""

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.errors import DataError

_LINES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_LINES, *_TABLES, ".json", ".parquet")
"""Kinds of files that hold rows; each may be gzipped (.gz) but Parquet, which is compressed already."""


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as it was read; `origin` is its file and line (or data set and index)."""

    origin: str
    fields: dict[str, Any]
    problem: str = ""
    """Why it could not be read; a row with one has no fields."""


def suffix_of(path: Path) -> str:
    """What tells the kind of a file, without regard to case."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last == ".gz" else last


def read_file(path: Path, columns: list[str] | None = None) -> Iterator[RawRow]:
    """The rows of a file of one of the SUFFIXES; `columns` names those of a table without a header line."""
    suffix = suffix_of(path)
    if suffix in _LINES:
        yield from read_json_lines(path)
    elif suffix in _TABLES:
        yield from _table(path, _TABLES[suffix], columns)
    elif suffix == ".json":
        yield from _json(path)
    else:
        yield from _parquet(path)


def read_json_lines(path: Path) -> Iterator[RawRow]:
    """The objects of a .jsonl file, plain or gzipped; DataError with file and line for what is none."""
    for number, line in numbered_lines(path):
        if line.strip():
            yield _object(path, number, line)


def _object(path: Path, number: int, line: str) -> RawRow:
    origin = f"{path.name}:{number}"
    try:
        fields = json.loads(line)
    except RecursionError:
        return RawRow(origin=origin, fields={}, problem="it is nested too deeply")
    except ValueError as error:
        raise DataError(f"{origin} is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{origin} is not a JSON object but {type(fields).__name__}.")
    return RawRow(origin=origin, fields=fields)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file from 1 on, plain or gzipped, without a byte order mark."""
    try:
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as file:
            yield from enumerate(file, start=1)
    except (OSError, EOFError, UnicodeError) as error:
        raise DataError(f"The data file {path} cannot be read: {error}.") from None


def _json(path: Path) -> Iterator[RawRow]:
    """A list of objects; or one object a line, as some tools write under this name."""
    lines = list(numbered_lines(path))
    try:
        loaded = json.loads("".join(line for _, line in lines))
    except RecursionError:
        raise DataError(f"{path.name} is nested too deeply to be read.") from None
    except ValueError as error:
        if not _is_object(next((line for _, line in lines if line.strip()), "")):
            raise DataError(f"{path.name} is not valid JSON: {error}.") from None
        yield from (_object(path, number, line) for number, line in lines if line.strip())
        return
    if isinstance(loaded, dict) and len([line for _, line in lines if line.strip()]) == 1:
        loaded = [loaded]
    if not isinstance(loaded, list) or not all(isinstance(fields, dict) for fields in loaded):
        raise DataError(f"{path.name} must hold a list of objects.")
    for number, fields in enumerate(loaded, start=1):
        yield RawRow(origin=f"{path.name}: item {number}", fields=fields)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _table(path: Path, delimiter: str, columns: list[str] | None) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    lines = (line for _, line in numbered_lines(path))
    # Quotes in a tab-separated file are text.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if delimiter == "\t" else csv.reader(lines)
    try:
        names = columns if columns is not None else next(reader, [])
        for values in reader:
            if not values:
                continue  # a blank line
            if len(values) != len(names):
                raise DataError(f"{path.name}:{reader.line_num} has {len(values)} fields where {len(names)} are named.")
            yield RawRow(origin=f"{path.name}:{reader.line_num}", fields=dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num} cannot be read: {error}.") from None


def _parquet(path: Path) -> Iterator[RawRow]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"The data file {path} is not a readable Parquet file: {error}.") from None
    for number, fields in enumerate(table, start=1):
        yield RawRow(origin=f"{path.name}: row {number}", fields=dict(fields))
