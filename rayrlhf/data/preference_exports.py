"""From preference records to rows: those that other tools read, and this project's own, which loses nothing."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

from rayrlhf.data.schema import TOOLS, Message, Preference, PromptText
from rayrlhf.data.tokenizer import prompt_as_text

ExportFormat = Literal["rewardbench", "rewardbench2", "trl"]


def own_row(record: Preference) -> dict[str, Any]:
    """The row that is read back as the same record."""
    prompt = record.prompt
    row: dict[str, Any] = {}
    if isinstance(prompt, list) and prompt and prompt[0]["role"] == TOOLS:
        row["tools"] = json.loads(prompt[0]["content"])
        prompt = prompt[1:]
    row |= {
        "prompt": prompt,
        "responses": [
            {key: value for key, value in asdict(response).items() if value is not None}
            for response in record.responses
        ],
        "probability": record.probability,
        "margin": record.margin,
        "weight": record.weight,
    }
    optional = {"ranking": record.ranking, "reference": record.reference, "subset": record.subset}
    return row | {key: value for key, value in optional.items() if value}


def export_rows(record: Preference, form: ExportFormat, *, number: int) -> Iterator[dict[str, Any]]:
    """The rows of one record; none where the form has no place for it.

    rewardbench: conversations that share their prompt, a row for every strict pair. trl: an explicit prompt beside both
    responses, as text or as messages. rewardbench2: the best responses against all others, a row for the record.
    """
    if form == "rewardbench2":
        yield from _best_against_rest(record, number)
        return
    for better, worse in record.strict_pairs():
        chosen, rejected = (record.responses[i].text for i in (better, worse))
        extra = {"subset": record.subset} if record.subset else {}
        if form == "rewardbench":
            turns = _turns(record.prompt)
            yield {"chosen": [*turns, _said(chosen)], "rejected": [*turns, _said(rejected)], **extra}
        elif isinstance(record.prompt, str):
            yield {"prompt": record.prompt, "chosen": chosen, "rejected": rejected, **extra}
        else:
            yield {"prompt": record.prompt, "chosen": [_said(chosen)], "rejected": [_said(rejected)], **extra}


def _best_against_rest(record: Preference, number: int) -> Iterator[dict[str, Any]]:
    if len(record.ranking) < 2:
        return
    best, rest = record.ranking[0], [i for group in record.ranking[1:] for i in group]
    yield {
        "id": str(number),
        "prompt": prompt_as_text(record.prompt),
        "chosen": [record.responses[i].text for i in best],
        "rejected": [record.responses[i].text for i in rest],
        "num_correct": len(best),
        "total_completions": len(best) + len(rest),
        "subset": record.subset,
    }


def _turns(prompt: PromptText) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}
