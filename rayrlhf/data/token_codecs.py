"""How token sequences lie on disk: each field a column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayrlhf.data.rows import Codec
from rayrlhf.types import Example, PreferenceExample, Prompt

_IDS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float64())


def _example_columns(rows: Sequence[Example]) -> dict[str, list[Any]]:
    return {
        "token_ids": [row.token_ids for row in rows],
        "prompt_length": [row.prompt_length for row in rows],
        "longest": [len(row.token_ids) for row in rows],
        "sequences_of": [1] * len(rows),
    }


def _read_example(batch: pa.RecordBatch, place: int) -> Example:
    return Example(token_ids=_ids(batch, "token_ids", place), prompt_length=_value(batch, "prompt_length", place))


_PREFERENCE_SCALARS = ("prompt_length", "probability", "margin", "weight")
_PREFERENCE_LISTS = ("lengths", "ranks", "ratings", "labels")


def _preference_columns(rows: Sequence[PreferenceExample]) -> dict[str, list[Any]]:
    names = ("sequences", *_PREFERENCE_SCALARS, *_PREFERENCE_LISTS, "longest")
    return {name: [getattr(row, name) for row in rows] for name in names} | {
        "sequences_of": [len(row.sequences) for row in rows]
    }


def _read_preference_example(batch: pa.RecordBatch, place: int) -> PreferenceExample:
    sequences = batch.column("sequences")[place].values
    lists: dict[str, Any] = {name: tuple(_value(batch, name, place)) for name in _PREFERENCE_LISTS}
    scalars: dict[str, Any] = {name: _value(batch, name, place) for name in _PREFERENCE_SCALARS}
    return PreferenceExample(sequences=tuple(s.values.to_numpy() for s in sequences), **lists, **scalars)


def _prompt_columns(rows: Sequence[Prompt]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in ("prompt_id", "text", "token_ids")}


def _read_prompt(batch: pa.RecordBatch, place: int) -> Prompt:
    return Prompt(
        prompt_id=_value(batch, "prompt_id", place),
        text=_value(batch, "text", place),
        token_ids=_ids(batch, "token_ids", place),
    )


def _value(batch: pa.RecordBatch, name: str, place: int) -> Any:
    return batch.column(name)[place].as_py()


def _ids(batch: pa.RecordBatch, name: str, place: int) -> np.ndarray:
    return batch.column(name)[place].values.to_numpy()


# What a micro-batch is planned by, a column of its own: the tokens of a row's longest sequence, and its sequences.
_PLANNED = [("longest", pa.int32()), ("sequences_of", pa.int32())]

examples: Codec[Example] = Codec(
    pa.schema([("token_ids", _IDS), ("prompt_length", pa.int32()), *_PLANNED]), _example_columns, _read_example
)
preference_examples: Codec[PreferenceExample] = Codec(
    pa.schema(
        [
            ("sequences", pa.list_(_IDS)),
            ("prompt_length", pa.int32()),
            *((name, pa.float64()) for name in ("probability", "margin", "weight")),
            *((name, _IDS) for name in ("lengths", "ranks")),
            *((name, _FLOATS) for name in ("ratings", "labels")),
            *_PLANNED,
        ]
    ),
    _preference_columns,
    _read_preference_example,
)
prompts: Codec[Prompt] = Codec(
    pa.schema([("prompt_id", pa.int64()), ("text", pa.string()), ("token_ids", _IDS)]), _prompt_columns, _read_prompt
)
