"""Raw rows from local files or the hub, each with the place it came from."""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import SourceConfig
from rayrlhf.errors import DataError

_LINES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as it was read; `origin` is its file and line (or data set and index)."""

    origin: str
    fields: dict[str, Any]


def load_rows(source: SourceConfig, *, root: str, seed: int) -> list[RawRow]:
    """All rows of a source, in a seeded order, cut to the slice [start, stop) and the limit.

    Sources that name the same file share the order, so that disjoint slices are disjoint rows.
    """
    rows = list(_rows(source, root))
    if not rows:
        raise DataError(f"{source.path} holds no rows.")
    order = np.random.default_rng(derive_seed(seed, "rows", source.path)).permutation(len(rows))
    first, last = round(source.start * len(rows)), round(source.stop * len(rows))
    chosen = [rows[i] for i in order[first:last]]
    return chosen[: source.limit]


def _rows(source: SourceConfig, root: str) -> Iterator[RawRow]:
    path = _local(source.path, root)
    if source.target is not None:
        return _parallel(path, _local(source.target, root), source)
    suffix = _suffix(path)
    if suffix not in (*_LINES, *_TABLES, ".json", ".parquet"):
        return _hub_rows(source)
    _demand(path, root)
    return _read(path, suffix, source)


def _local(name: str, root: str) -> Path:
    return Path(root).expanduser() / name


def _demand(path: Path, root: str) -> None:
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist (data.root is {root}).")


def _parallel(path: Path, target: Path, source: SourceConfig) -> Iterator[RawRow]:
    """Line k of one file with line k of the other."""
    for file in (path, target):
        _demand(file, str(file.parent))
    lines, answers = ([line.strip() for _, line in _lines(file)] for file in (path, target))
    if len(lines) != len(answers):
        raise DataError(f"{path.name} has {len(lines)} lines and {target.name} has {len(answers)}: they must match.")
    for number, (line, answer) in enumerate(zip(lines, answers, strict=True), start=1):
        prompt = source.template.format(line=line) if line else ""
        yield RawRow(
            origin=f"{path.name}:{number}",
            fields={source.prompt_key: prompt, source.response_key: answer, source.reference_key: answer},
        )


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read(path: Path, suffix: str, source: SourceConfig) -> Iterator[RawRow]:
    if suffix in _LINES:
        yield from read_json_lines(path)
    elif suffix in _TABLES:
        yield from _table(path, _TABLES[suffix], source.columns)
    elif suffix == ".json":
        yield from _json_array(path)
    else:
        yield from _parquet(path)


def _open(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def read_json_lines(path: Path) -> Iterator[RawRow]:
    """The objects of a .jsonl file, plain or gzipped; DataError with file and line for what is none."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path.name}:{number} is not valid JSON: {error}.") from None
        if not isinstance(fields, dict):
            raise DataError(f"{path.name}:{number} is not a JSON object but {type(fields).__name__}.")
        yield RawRow(origin=f"{path.name}:{number}", fields=fields)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with _open(path) as file:
            yield from enumerate(file, start=1)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"The data file {path} cannot be read: {error}.") from None


def _json_array(path: Path) -> Iterator[RawRow]:
    text = "".join(line for _, line in _lines(path))
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.name} is not valid JSON: {error}.") from None
    if not isinstance(loaded, list) or not all(isinstance(fields, dict) for fields in loaded):
        raise DataError(f"{path.name} must hold a list of objects.")
    for number, fields in enumerate(loaded, start=1):
        yield RawRow(origin=f"{path.name}: item {number}", fields=fields)


def _table(path: Path, delimiter: str, columns: list[str] | None) -> Iterator[RawRow]:
    lines = (line for _, line in _lines(path))
    # Quotes in a tab-separated file are text.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if delimiter == "\t" else csv.reader(lines)
    names = columns if columns is not None else next(reader, [])
    for values in reader:
        if len(values) != len(names):
            raise DataError(f"{path.name}:{reader.line_num} has {len(values)} fields where {len(names)} are named.")
        yield RawRow(origin=f"{path.name}:{reader.line_num}", fields=dict(zip(names, values, strict=True)))


def _parquet(path: Path) -> Iterator[RawRow]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"The data file {path} is not a readable Parquet file: {error}.") from None
    for number, fields in enumerate(table, start=1):
        yield RawRow(origin=f"{path.name}: row {number}", fields=dict(fields))


def _hub_rows(source: SourceConfig) -> Iterator[RawRow]:
    import datasets

    try:
        table = datasets.load_dataset(source.path, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"{source.path} is neither a data file (.jsonl .json .csv .tsv .parquet, also .gz) nor a data set that can be "
            f"loaded from the hub: {first}"
        ) from None
    for number, fields in enumerate(table):
        yield RawRow(origin=f"{source.path}[{source.split}] row {number}", fields=dict(fields))
