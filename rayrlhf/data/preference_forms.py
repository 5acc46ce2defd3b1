"""From raw rows to preference records: every form that preference data comes in, told apart by its fields."""

from dataclasses import replace
from typing import Any

from rayrlhf.config import SourceConfig
from rayrlhf.data import fields, messages
from rayrlhf.data.comparisons import comparison
from rayrlhf.data.fields import Row, UnusableRowError
from rayrlhf.data.pair_forms import pair_record
from rayrlhf.data.prompt_forms import prompt_of
from rayrlhf.data.ranking import Ranking, rank_by, ranked, rated
from rayrlhf.data.schema import Preference, PromptText, Response


def preference(row: Row, source: SourceConfig, *, origin: str = "") -> Preference:
    """The record of one row; UnusableRowError where it holds none. What the row was recognised as is left in `row.form`.

    Told apart by their fields: `responses` (K of them with ratings or a ranking), `completions` with ranks (NeMo) or
    scores (UltraFeedback), `answers` with ranks (Nectar), `chosen` and `rejected` as text, dialogues or chat messages,
    with or without a prompt (HH, TRL, OpenRLHF, orca, Alpaca, ShareGPT) or as lists of texts (rewardbench 2), two
    responses and a verdict (HelpSteer 2 and 3, WebGPT and others), one response with a rating (HelpSteer: rows of one
    prompt are gathered) or with a label (KTO).
    """
    return replace(_record(row, source), **_common(row, source), origin=origin)


def _record(row: Row, source: SourceConfig) -> Preference:
    compared = comparison(row)
    if row.kind("responses") is list:
        return _listed(row, source)
    if row.kind("completions") is list:
        return _completions(row, source)
    if row.kind("answers") is list:
        return _answers(row, source)
    if source.chosen_key in row or source.rejected_key in row:
        return pair_record(row, source)
    if compared is not None:
        row.form = f"two responses and a verdict ({compared.name})"
        return compared.read(row, source)
    return _single(row, source)


def _common(row: Row, source: SourceConfig) -> dict[str, Any]:
    """What any form may carry beside its responses, where it does."""
    found: dict[str, Any] = {}
    probability = fields.optional_number(row, source.probability_key)
    if probability is not None:
        if not 0.0 <= probability <= 1.0:
            raise UnusableRowError(f"the field {source.probability_key} is {probability:g}, not in [0, 1]")
        found["probability"] = probability
    margin, weight = fields.optional_number(row, source.margin_key), fields.optional_number(row, "weight")
    if margin is not None:
        found["margin"] = margin
    if weight is not None:
        if weight < 0:
            raise UnusableRowError(f"the field weight is {weight:g}, below 0")
        found["weight"] = weight
    if row.kind(source.reference_key) is str and row.holds(source.reference_key):
        found["reference"] = fields.text(row, source.reference_key)
    if row.holds(source.subset_key):
        found["subset"] = str(row[source.subset_key])
    return found


def _listed(row: Row, source: SourceConfig) -> Preference:
    values = row["responses"]
    if row.kind("ratings") is list and len(row["ratings"]) == len(values):  # two columns of one length
        values = [{"text": value, "rating": rating} for value, rating in zip(values, row["ratings"], strict=True)]
    responses, prompt = [_response(value) for value in values], prompt_of(row, source)
    stated = row.get("preference")
    if row.get("ranking") is not None:
        row.form = "responses and their ranking"
        return ranked(prompt, responses, _ranking(row["ranking"], len(responses)))
    if isinstance(stated, dict):
        row.form = "responses and which of two is better"
        record = ranked(prompt, responses, _ranking([stated.get("i"), stated.get("j")], len(responses)))
        probability, margin = fields.number(stated, "p", 1.0), fields.number(stated, "margin", 0.0)
        return replace(record, probability=probability, margin=margin)
    if responses and all(response.rating is not None for response in responses):
        row.form = "responses with ratings"
        return rated(prompt, responses)
    if responses and any(r.rating is None and r.label is None for r in responses):
        raise UnusableRowError("its responses have neither a ranking, nor a preference, nor ratings, nor labels")
    row.form = "responses with labels"
    return ranked(prompt, responses, ())


def _response(value: Any) -> Response:
    if not isinstance(value, dict) or messages.is_conversation(value):
        return Response(text=messages.as_response(value, "responses"))
    key = next((key for key in ("content", "text", "response") if key in value), "content")
    own = Row(value)
    rating = fields.optional_number(own, "rating")
    label = fields.flag(own, "label") if own.holds("label") else None
    return Response(text=messages.as_response(value.get(key), f"responses.{key}"), rating=rating, label=label)


def _ranking(value: Any, count: int) -> Ranking:
    groups = [group if isinstance(group, list) else [group] for group in value] if isinstance(value, list) else []
    flat = [number for group in groups for number in group]
    known = all(isinstance(number, int) and 0 <= number < count for number in flat)
    if not flat or not known or len(set(flat)) != len(flat):
        raise UnusableRowError(f"the ranking {value!r} must name each of some of the {count} responses once, from 0")
    return tuple(tuple(group) for group in groups if group)


def _completions(row: Row, source: SourceConfig) -> Preference:
    """With ranks, 0 the best (NeMo); or with a score each (UltraFeedback)."""
    values = row["completions"]
    if not all(isinstance(value, dict) for value in values):
        raise UnusableRowError("the field completions does not hold objects with rank and completion")
    if values and all("rank" in value for value in values):
        row.form = "completions with ranks (NeMo)"
        responses = [Response(text=messages.as_response(v.get("completion"), "completion")) for v in values]
        return ranked(prompt_of(row, source), responses, rank_by([-fields.number(v, "rank") for v in values]))
    score = next((k for k in ("overall_score", "fine-grained_score", "rating") if all(k in v for v in values)), None)
    if not values or score is None:
        raise UnusableRowError("the field completions does not hold objects with rank and completion")
    row.form = f"completions with {score} (UltraFeedback)"
    return rated(
        prompt_of(row, source),
        [
            Response(
                text=messages.as_response(v.get("response"), "completions.response"), rating=fields.number(v, score)
            )
            for v in values
        ],
    )


def _answers(row: Row, source: SourceConfig) -> Preference:
    values = row["answers"]
    if not values or not all(isinstance(value, dict) and {"answer", "rank"} <= value.keys() for value in values):
        raise UnusableRowError("the field answers does not hold objects with answer and rank")
    row.form = "answers with ranks (Nectar)"
    responses = [Response(text=messages.as_response(value["answer"], "answers.answer")) for value in values]
    return ranked(prompt_of(row, source), responses, rank_by([-fields.number(value, "rank") for value in values]))


def _single(row: Row, source: SourceConfig) -> Preference:
    key = next((key for key in (source.response_key, "completion") if key in row), source.response_key)
    response, prompt = messages.response(row, key), prompt_of(row, source)
    if source.rating_weights is not None:
        row.form = f"a response with a rating of {' and '.join(source.rating_weights)}"
        rating = sum(weight * fields.number(row, name) for name, weight in source.rating_weights.items())
        return _one(prompt, Response(text=response, rating=rating))
    for name in (source.rating_key, "helpfulness"):
        if row.holds(name):
            row.form = f"a response with {name}, gathered by prompt"
            return _one(prompt, Response(text=response, rating=fields.number(row, name)))
    if row.holds(source.label_key):
        row.form = "a response with a label (KTO)"
        return _one(prompt, Response(text=response, label=fields.flag(row, source.label_key)))
    raise UnusableRowError(
        f"it holds neither {source.chosen_key} and {source.rejected_key}, nor responses, nor completions, nor a response "
        f"with {source.rating_key} or {source.label_key}"
    )


def _one(prompt: PromptText, *responses: Response) -> Preference:
    return Preference(prompt=prompt, responses=responses)
