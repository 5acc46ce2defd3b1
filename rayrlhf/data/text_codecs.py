"""How text records lie on disk: as JSON, since a prompt may be a conversation of any shape."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayrlhf.data.rows import Codec
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, Response

_TEXT = pa.schema([("record", pa.string())])


def _written(records: Sequence[Demonstration | Preference | PromptRow]) -> dict[str, list[Any]]:
    return {"record": [json.dumps(vars(record), default=vars) for record in records]}


def _fields(batch: pa.RecordBatch, place: int) -> dict[str, Any]:
    return json.loads(batch.column(0)[place].as_py())


def _read_preference(batch: pa.RecordBatch, place: int) -> Preference:
    fields = _fields(batch, place)
    responses = tuple(Response(**response) for response in fields.pop("responses"))
    ranking = tuple(tuple(group) for group in fields.pop("ranking"))
    return Preference(responses=responses, ranking=ranking, **fields)


def _read_prompt_row(batch: pa.RecordBatch, place: int) -> PromptRow:
    fields = _fields(batch, place)
    rewards = fields.pop("rewards")
    return PromptRow(rewards=None if rewards is None else tuple(rewards), **fields)


demonstrations: Codec[Demonstration] = Codec(
    _TEXT, _written, lambda batch, place: Demonstration(**_fields(batch, place))
)
preferences: Codec[Preference] = Codec(_TEXT, _written, _read_preference)
prompt_rows: Codec[PromptRow] = Codec(_TEXT, _written, _read_prompt_row)
