"""From raw rows to preference records: every form that preference data comes in, told apart by its fields."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rayrlhf.config import SourceConfig
from rayrlhf.data import fields
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Preference, PromptText, Response
from rayrlhf.data.sources import RawRow

_ASSISTANT = "\n\nAssistant:"


def preference(row: RawRow, source: SourceConfig) -> Preference:
    """The record of one row; UnusableRowError where it holds none.

    Told apart by their fields: `responses` (K of them with ratings or a ranking), `context` with `completions` and their
    ranks (NeMo), `chosen` and `rejected` as text, dialogues or chat messages, with or without a prompt (HH, TRL,
    OpenRLHF) or as lists of texts (rewardbench 2), `response1` and `response2` (HelpSteer3), one response with a rating
    (HelpSteer2: rows of one prompt are gathered) or with a label (KTO).
    """
    return replace(_record(row.fields, source), **_common(row.fields, source), origin=row.origin)


def gather(records: Iterable[Preference]) -> list[Preference]:
    """The records, those with a single rated response merged by prompt and ranked by rating, in order of first sight."""
    merged: dict[str, list[Preference]] = {}
    for number, record in enumerate(records):
        alone = len(record.responses) == 1 and record.responses[0].rating is not None
        key = json.dumps(record.prompt, sort_keys=True) if alone else f"#{number}"
        merged.setdefault(key, []).append(record)
    return [group[0] if len(group) == 1 else _merge(group) for group in merged.values()]


def rank_by(values: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Groups of positions from the largest value to the smallest, equal values together."""
    return tuple(
        tuple(i for i, value in enumerate(values) if value == level) for level in sorted(set(values), reverse=True)
    )


def _record(row: dict[str, Any], source: SourceConfig) -> Preference:
    if isinstance(row.get("responses"), list):
        return _listed(row, source)
    if "completions" in row:
        return _ranked_completions(row)
    if source.chosen_key in row or source.rejected_key in row:
        plural = all(_is_list_of_texts(row.get(key)) for key in (source.chosen_key, source.rejected_key))
        return _best_of_many(row, source) if plural else _pair(row, source)
    if "response1" in row and "response2" in row:
        return _compared(row)
    return _single(row, source)


def _common(row: dict[str, Any], source: SourceConfig) -> dict[str, Any]:
    """What any form may carry beside its responses, where it does."""
    found: dict[str, Any] = {}
    if row.get(source.probability_key) is not None:
        found["probability"] = fields.number(row, source.probability_key)
        if not 0.0 <= found["probability"] <= 1.0:
            raise UnusableRowError(f"the field {source.probability_key} is {found['probability']:g}, not in [0, 1]")
    if row.get(source.margin_key) is not None:
        found["margin"] = fields.number(row, source.margin_key)
    if row.get("weight") is not None:
        found["weight"] = fields.number(row, "weight")
        if found["weight"] < 0:
            raise UnusableRowError(f"the field weight is {found['weight']:g}, below 0")
    if isinstance(row.get(source.reference_key), str):
        found["reference"] = row[source.reference_key]
    if row.get(source.subset_key) is not None:
        found["subset"] = str(row[source.subset_key])
    return found


def _pair(row: dict[str, Any], source: SourceConfig) -> Preference:
    """chosen and rejected, with an explicit prompt or with the prompt they share."""
    if source.prompt_key in row:
        prompt = fields.prompt(row, source.prompt_key)
        chosen, rejected = (_answer(row, key, prompt) for key in (source.chosen_key, source.rejected_key))
    else:
        chosen_prompt, chosen = _implicit(row, source.chosen_key)
        prompt, rejected = _implicit(row, source.rejected_key)
        if chosen_prompt != prompt:
            prompt, chosen, rejected = _shared_prompt(row, source)
    if chosen == rejected:
        raise UnusableRowError("chosen and rejected are the same text")
    return _ranked(prompt, [Response(text=chosen), Response(text=rejected)], ((0,), (1,)))


def _answer(row: dict[str, Any], key: str, prompt: PromptText) -> str:
    """A side beside an explicit prompt; one that repeats the prompt's messages in front is cut to its answer."""
    value = row.get(key)
    if isinstance(value, list) and len(value) > 1:
        head, answer = fields.split_messages(value, key)
        if head == prompt or (len(head) == 1 and isinstance(head[0], dict) and head[0]["content"] == prompt):
            return answer
    return fields.response(row, key)


def _best_of_many(row: dict[str, Any], source: SourceConfig) -> Preference:
    good, bad = row[source.chosen_key], row[source.rejected_key]
    count = len(good)
    responses = [Response(text=fields.as_response(value, "chosen or rejected")) for value in (*good, *bad)]
    ranking = (tuple(range(count)), tuple(range(count, len(responses))))
    return _ranked(fields.prompt(row, source.prompt_key), responses, ranking)


def _listed(row: dict[str, Any], source: SourceConfig) -> Preference:
    responses = [_response(value) for value in row["responses"]]
    ratings = [response.rating for response in responses]
    stated = row.get("preference")
    ranking: tuple[tuple[int, ...], ...] = ()
    if row.get("ranking") is not None:
        ranking = _ranking(row["ranking"], len(responses))
    elif isinstance(stated, dict):
        ranking = _ranking([stated.get("i"), stated.get("j")], len(responses))
    elif len(responses) > 1 and all(rating is not None for rating in ratings):
        ranking = rank_by([rating for rating in ratings if rating is not None])
    record = _ranked(fields.prompt(row, source.prompt_key), responses, ranking)
    if isinstance(stated, dict):
        probability, margin = fields.number(stated, "p", 1.0), fields.number(stated, "margin", 0.0)
        return replace(record, probability=probability, margin=margin)
    return record


def _response(value: Any) -> Response:
    if not isinstance(value, dict):
        return Response(text=fields.as_response(value, "responses"))
    key = "content" if "content" in value else "text"
    rating = fields.number(value, "rating") if value.get("rating") is not None else None
    label = fields.flag(value, "label") if value.get("label") is not None else None
    return Response(text=fields.as_response(value.get(key), f"responses.{key}"), rating=rating, label=label)


def _ranking(value: Any, count: int) -> tuple[tuple[int, ...], ...]:
    groups = [group if isinstance(group, list) else [group] for group in value] if isinstance(value, list) else []
    flat = [number for group in groups for number in group]
    known = all(isinstance(number, int) and 0 <= number < count for number in flat)
    if not flat or not known or len(set(flat)) != len(flat):
        raise UnusableRowError(f"the ranking {value!r} must name each of some of the {count} responses once, from 0")
    return tuple(tuple(group) for group in groups if group)


def _ranked_completions(row: dict[str, Any]) -> Preference:
    prompt = fields.prompt(row, "context")
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        raise UnusableRowError("the field completions does not hold objects with rank and completion")
    responses = [Response(text=fields.as_response(c.get("completion"), "completion")) for c in completions]
    return _ranked(prompt, responses, rank_by([-fields.number(c, "rank") for c in completions]))


def _compared(row: dict[str, Any]) -> Preference:
    """Two responses and which is better by how much, from -3 (the first) to 3 (the second)."""
    prompt = fields.prompt(row, "context" if "context" in row else "prompt")
    responses = [Response(text=fields.response(row, key)) for key in ("response1", "response2")]
    strength = fields.number(row, "overall_preference")
    ranking = ((0,), (1,)) if strength < 0 else ((1,), (0,)) if strength > 0 else ((0, 1),)
    return replace(_ranked(prompt, responses, ranking), margin=abs(strength))


def _single(row: dict[str, Any], source: SourceConfig) -> Preference:
    key = "completion" if "completion" in row else source.response_key
    response = fields.response(row, key)
    prompt = fields.prompt(row, source.prompt_key)
    if source.rating_weights is not None:
        rating = sum(weight * fields.number(row, name) for name, weight in source.rating_weights.items())
        return Preference(prompt=prompt, responses=(Response(text=response, rating=rating),))
    for name in (source.rating_key, "helpfulness"):
        if row.get(name) is not None:
            return Preference(prompt=prompt, responses=(Response(text=response, rating=fields.number(row, name)),))
    if row.get(source.label_key) is not None:
        return Preference(prompt=prompt, responses=(Response(text=response, label=fields.flag(row, source.label_key)),))
    raise UnusableRowError(
        f"it holds neither {source.chosen_key} and {source.rejected_key}, nor responses, nor completions, nor a response "
        f"with {source.rating_key} or {source.label_key}"
    )


def _ranked(prompt: PromptText, responses: Sequence[Response], ranking: tuple[tuple[int, ...], ...]) -> Preference:
    if not responses:
        raise UnusableRowError("it holds no responses")
    return Preference(prompt=prompt, responses=tuple(responses), ranking=ranking)


def _merge(group: Sequence[Preference]) -> Preference:
    responses = [record.responses[0] for record in group]
    ranking = rank_by([response.rating for response in responses if response.rating is not None])
    return replace(group[0], responses=tuple(responses), ranking=ranking)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _implicit(row: dict[str, Any], key: str) -> tuple[PromptText, str]:
    """Prompt and response of one side: messages, or a dialogue whose last turn is the assistant's."""
    if isinstance(row.get(key), list):
        return fields.split_messages(row[key], key)
    found_text = fields.text(row, key)
    head, found, tail = found_text.rpartition(_ASSISTANT)
    if found and not tail.strip():
        raise UnusableRowError(f"the field {key} ends with an empty answer")
    return (head + found, tail) if found else ("", found_text)


def _shared_prompt(row: dict[str, Any], source: SourceConfig) -> tuple[PromptText, str, str]:
    """Dialogues that part earlier than their last turn: the prompt is what they share, up to a turn of the assistant."""
    chosen, rejected = (row.get(key) for key in (source.chosen_key, source.rejected_key))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise UnusableRowError("chosen and rejected do not share a prompt")
    common = _common_prefix(chosen, rejected)
    head, found, _ = common.rpartition(_ASSISTANT)
    if not found:
        raise UnusableRowError("chosen and rejected do not share a prompt")
    cut = len(head + found)
    if not chosen[cut:].strip() or not rejected[cut:].strip():
        raise UnusableRowError("chosen or rejected is empty after the prompt they share")
    return head + found, chosen[cut:], rejected[cut:]


def _common_prefix(first: str, second: str) -> str:
    parted = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[:parted] if parted is not None else min(first, second, key=len)
