"""Where rows come from: files, folders and patterns under data.root, pairs of parallel files, or the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayrlhf.config import SourceConfig
from rayrlhf.data.cache import file_digest
from rayrlhf.data.files import SUFFIXES, RawRow, numbered_lines, read_file, suffix_of
from rayrlhf.errors import DataError

_PATTERN = "*?["


def load_rows(source: SourceConfig, *, root: str) -> list[RawRow]:
    """All rows of a source, in the order of its files."""
    rows = list(_rows(source, root))
    if not rows:
        raise DataError(f"{source.path} holds no rows.")
    return rows


def content_of(source: SourceConfig, *, root: str) -> list[tuple[str, str]]:
    """What tells the content of a source from any other: the name and digest of each file, or of a hub data set as loaded."""
    files = _files(source, root)
    if files is None:
        return [(source.path, str(_hub_table(source)._fingerprint))]
    try:
        return [(file.name, file_digest(file)) for file in files]
    except OSError as error:
        raise DataError(f"The data file {error.filename} cannot be read: {error.strerror}.") from None


def _rows(source: SourceConfig, root: str) -> Iterator[RawRow]:
    files = _files(source, root)
    if files is None:
        yield from _hub_rows(source)
    elif source.target is not None:
        yield from _parallel(files[0], files[1], source)
    else:
        for file in files:
            yield from read_file(file, source.columns)


def _files(source: SourceConfig, root: str) -> list[Path] | None:
    """The files of a source, in order; None for a data set on the hub."""
    path = _local(source.path, root)
    if source.target is not None:
        files = [path, _local(source.target, root)]
        for file in files:
            _demand(file, str(file.parent))
        return files
    if path.is_dir() or any(sign in source.path for sign in _PATTERN):
        return _several(path, source, root)
    if suffix_of(path) in SUFFIXES:
        _demand(path, root)
        return [path]
    return None


def _local(name: str, root: str) -> Path:
    return Path(root).expanduser() / Path(name).expanduser()


def _demand(path: Path, root: str) -> None:
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist (data.root is {root}).")


def _several(path: Path, source: SourceConfig, root: str) -> list[Path]:
    """The data files of a folder, or those that a pattern names, by name."""
    if path.is_dir():
        found = [file for file in path.iterdir() if file.is_file()]
    else:
        pattern = Path(source.path).expanduser()
        base = Path(pattern.anchor) if pattern.is_absolute() else Path(root).expanduser()
        found = [file for file in base.glob(str(pattern.relative_to(pattern.anchor))) if file.is_file()]
    files = sorted(file for file in found if suffix_of(file) in SUFFIXES)
    if not files:
        raise DataError(f"{path} has no data file ({' '.join(SUFFIXES)}, also .gz; data.root is {root}).")
    kinds = {suffix_of(file) for file in files}
    if path.is_dir() and len(kinds) > 1:
        raise DataError(
            f"The folder {path} holds files of {len(kinds)} kinds ({', '.join(sorted(kinds))}): name those that are meant, "
            f"such as path={source.path.rstrip('/')}/*{min(kinds)}."
        )
    return files


def _parallel(path: Path, target: Path, source: SourceConfig) -> Iterator[RawRow]:
    """Line k of one file with line k of the other."""
    lines, answers = ([line.strip() for _, line in numbered_lines(file)] for file in (path, target))
    if len(lines) != len(answers):
        raise DataError(f"{path.name} has {len(lines)} lines and {target.name} has {len(answers)}: they must match.")
    for number, (line, answer) in enumerate(zip(lines, answers, strict=True), start=1):
        prompt = source.template.format(line=line) if line else ""
        yield RawRow(
            origin=f"{path.name}:{number}",
            fields={source.prompt_key: prompt, source.response_key: answer, source.reference_key: answer},
        )


def _hub_rows(source: SourceConfig) -> Iterator[RawRow]:
    for number, fields in enumerate(_hub_table(source)):
        yield RawRow(origin=f"{source.path}[{source.split}] row {number}", fields=dict(fields))


def _hub_table(source: SourceConfig) -> Any:
    import datasets

    named = {"name": source.config_name, "data_dir": source.data_dir, "revision": source.revision}
    given = {name: value for name, value in named.items() if value is not None}
    try:
        return datasets.load_dataset(source.path, split=source.split, **given)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"{source.path} is neither a data file (.jsonl .json .csv .tsv .parquet, also .gz), a folder or pattern of such, "
            f"nor a data set that can be loaded from the hub: {first}"
        ) from None
