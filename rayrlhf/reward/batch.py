"""Scoring a file of prompts and responses, to be gone on with where it was broken off."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithms.ensemble import Combination
from rayrlhf.data import fields
from rayrlhf.data.sources import RawRow, read_json_lines
from rayrlhf.errors import DataError
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import RewardStats

_CHUNK = 256


def score_file(
    model: RewardModel,
    stats: RewardStats,
    source: Path,
    target: Path,
    *,
    combination: Combination = "mean",
    penalty: float = 0.0,
    progress: Callable[[int, int], None],
) -> int:
    """Write every row of `source` to `target` with its score, in order; the number of rows scored by this call.

    Rows hold prompt and response, as text or chat messages, or messages alone. A target that is there already is gone
    on with: its rows must be the first ones of `source`. Each chunk is on disk before the next is begun.
    """
    rows = list(read_json_lines(source))
    if not rows:
        raise DataError(f"{source} holds no rows.")
    done = _keep_whole_lines(target, rows)
    with open(target, "a", encoding="utf-8") as out:
        for start in range(done, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            for line in _scored(model, stats, chunk, combination, penalty):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
            progress(start + len(chunk), len(rows))
    return len(rows) - done


def _scored(
    model: RewardModel, stats: RewardStats, rows: list[RawRow], combination: Combination, penalty: float
) -> Iterator[dict[str, Any]]:
    sequences = [_encode(model, row, stats.max_length) for row in rows]
    raw = model.score(sequences)
    if not np.isfinite(raw).all():
        bad = rows[int(np.flatnonzero(~np.isfinite(raw).all(1))[0])]
        raise DataError(f"{bad.origin} has a score that is not finite.")
    if model.members == 1:
        for row, score in zip(rows, raw[:, 0].tolist(), strict=True):
            yield row.fields | {"score": score}
        return
    scores, spreads = stats.combined(raw, combination, penalty=penalty)
    for row, score, spread in zip(rows, scores.tolist(), spreads.tolist(), strict=True):
        yield row.fields | {"score": score, "spread": spread}


def _encode(model: RewardModel, row: RawRow, max_length: int) -> np.ndarray:
    try:
        if "prompt" not in row.fields and "messages" in row.fields:
            prompt, response = fields.split_messages(row.fields["messages"], "messages")
        else:
            prompt = fields.prompt(row.fields, "prompt") if row.fields.get("prompt") else ""
            response = fields.response(row.fields, "response")
    except fields.UnusableRowError as reason:
        raise DataError(f"{row.origin} cannot be scored: {reason}.") from None
    ids = model.encode(prompt, response)
    if len(ids) > max_length:
        raise DataError(
            f"{row.origin} has {len(ids)} tokens and the reward model was trained on at most {max_length}: nothing is cut."
        )
    return ids


def _keep_whole_lines(target: Path, rows: list[RawRow]) -> int:
    """Drop a line torn by a kill; how many rows are scored already."""
    if not target.exists():
        return 0
    content = target.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    for number, (line, row) in enumerate(zip(lines, rows, strict=False), start=1):
        found = json.loads(line)
        if any(found.get(key) != value for key, value in row.fields.items()):
            raise DataError(f"{target}:{number} is not a scored {row.origin}: remove {target} or name another file.")
    if len(lines) > len(rows):
        raise DataError(f"{target} holds {len(lines)} rows and the input {len(rows)}: remove it or name another file.")
    if len(whole) < len(content):
        os.truncate(target, len(whole))
    return len(lines)
