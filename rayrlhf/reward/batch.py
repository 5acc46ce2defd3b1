"""Scoring a file of prompts and responses, to be gone on with where it was broken off."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithms.ensemble import Combination
from rayrlhf.config import SourceConfig
from rayrlhf.data import messages
from rayrlhf.data.fields import Row, UnusableRowError
from rayrlhf.data.files import RawRow, read_json_lines
from rayrlhf.data.prompt_forms import stated_prompt
from rayrlhf.data.schema import PromptText
from rayrlhf.errors import DataError
from rayrlhf.files import write_json
from rayrlhf.reward.model import Reads, RewardModel
from rayrlhf.reward.stats import RewardStats

_CHUNK = 256
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a file is scored: what it takes to go on with it."""

    combination: Combination = "mean"
    penalty: float = 0.0
    field: str = "score"
    """The scores' own; `spread` stands beside it for an ensemble, `problem` for a row that has none."""
    skip: bool = False
    """A row that cannot be scored has the score null and the reason beside it; otherwise nothing is scored."""


_PLAIN = Scoring()


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A row of the input, checked."""

    fields: dict[str, Any]
    read: Reads | None
    """The tokens to score; None where the row cannot be scored."""
    problem: str = ""


def score_file(
    model: RewardModel,
    stats: RewardStats,
    source: Path,
    target: Path,
    how: Scoring = _PLAIN,
    *,
    progress: Callable[[int, int], None],
) -> int:
    """Write every row of `source` to `target` with its score, in order; the number of rows scored by this call.

    Rows hold prompt and response, as text or chat messages, or messages alone. All are checked before the first is scored.
    A target that is there already is gone on with: its rows must be the first ones of `source`, scored by the same model
    in the same way, which stands in a file beside it. Each chunk is on disk before the next is begun.
    """
    lines = [_checked(model, row, stats.max_length, how) for row in read_json_lines(source)]
    if not lines:
        raise DataError(f"{source} holds no rows.")
    _refuse_problems(lines, source, how)
    done = _keep_whole_lines(target, lines, how, digest_of(model.directory))
    with open(target, "a", encoding="utf-8") as out:
        for start in range(done, len(lines), _CHUNK):
            chunk = lines[start : start + _CHUNK]
            for line in _scored(model, stats, chunk, how):
                out.write(_as_line(line))
            out.flush()
            os.fsync(out.fileno())
            progress(start + len(chunk), len(lines))
    return len(lines) - done


def digest_of(directory: str) -> str:
    """What tells one reward model from another: the digest of its files."""
    found = hashlib.sha256()
    for path in sorted(Path(directory).rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja") and path.name != "evaluation.json":
            found.update(str(path.relative_to(directory)).encode())
            with open(path, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def _as_line(row: dict[str, Any]) -> str:
    """A row as JSON; half a character that the input holds stays escaped."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    return line if _is_unicode(line) else json.dumps(row, allow_nan=False) + "\n"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _scored(model: RewardModel, stats: RewardStats, lines: Sequence[_Line], how: Scoring) -> Iterator[dict[str, Any]]:
    raw = model.score([line.read for line in lines if line.read is not None])
    if not np.isfinite(raw).all():
        raise DataError(f"The reward model {model.directory} gives scores that are not finite: it is not usable.")
    several = model.members > 1
    scores, spreads = stats.combined(raw, how.combination, penalty=how.penalty) if several else (raw[:, 0], raw[:, 0])
    found = iter(zip(scores.tolist(), spreads.tolist(), strict=True))
    for line in lines:
        if line.read is None:
            yield line.fields | {how.field: None, "problem": line.problem}
            continue
        score, spread = next(found)
        yield line.fields | {how.field: score} | ({"spread": spread} if several else {})


def _checked(model: RewardModel, raw: RawRow, max_length: int, how: Scoring) -> _Line:
    given = _without_nan(raw.fields)
    if how.field in given:
        raise DataError(f"{raw.origin} has a field {how.field} already: give the scores another with --field.")
    problem, read = raw.problem, None
    if not problem:
        try:
            read = model.encode(*_exchange(Row(raw.fields)))
        except UnusableRowError as reason:
            problem = str(reason)
    if read is not None and (longest := max(map(len, read))) > max_length:
        problem = f"it has {longest} tokens and the reward model was trained on at most {max_length}: nothing is cut"
    if problem:
        return _Line(fields=given, read=None, problem=f"{raw.origin}: {problem}")
    return _Line(fields=given, read=read)


def _exchange(row: Row) -> tuple[PromptText, str]:
    if "prompt" not in row and row.kind("messages") is list:
        return messages.split_messages(row["messages"], "messages")
    blank = "prompt" in row and not row.holds("prompt")
    prompt = None if blank else stated_prompt(row, SourceConfig(path="", format="prompts"))
    return prompt or "", messages.response(row, "response")


def _refuse_problems(lines: Sequence[_Line], source: Path, how: Scoring) -> None:
    problems = [line.problem for line in lines if line.read is None]
    if problems and not how.skip:
        named = "; ".join(problems[:_NAMED]) + ("; ..." if len(problems) > _NAMED else "")
        raise DataError(
            f"{len(problems)} of {len(lines)} rows of {source.name} cannot be scored: {named}. Nothing is scored; with --skip "
            f"these rows have no score."
        )


def _keep_whole_lines(target: Path, lines: Sequence[_Line], how: Scoring, digest: str) -> int:
    """Drop a line torn by a kill; how many rows are scored already."""
    beside = target.with_name(f"{target.name}.scored_by.json")
    by = {"model": digest, **asdict(how)}
    if not target.exists() or not target.stat().st_size:
        write_json(beside, by)
        return 0
    try:
        known = json.loads(beside.read_text())
    except (OSError, ValueError):
        raise DataError(
            f"{target} was not written by this command ({beside.name} is not beside it): remove it or name another file."
        ) from None
    changed = [name for name in by if known.get(name) != by[name]]
    if changed:
        raise DataError(
            f"{target} was scored otherwise ({', '.join(changed)} changed): remove it and {beside.name}, or name another file."
        )
    content = target.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    written = whole.splitlines()
    for number, (text, line) in enumerate(zip(written, lines, strict=False), start=1):
        found = json.loads(text)
        if any(found.get(key) != value for key, value in line.fields.items()):
            raise DataError(
                f"{target}:{number} is not a scored row of the input: remove {target} or name another file."
            )
    if len(written) > len(lines):
        raise DataError(
            f"{target} holds {len(written)} rows and the input {len(lines)}: remove it or name another file."
        )
    if len(whole) < len(content):
        os.truncate(target, len(whole))
    return len(written)


def _without_nan(value: Any) -> Any:
    """What JSON can hold: numbers that are none become null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
