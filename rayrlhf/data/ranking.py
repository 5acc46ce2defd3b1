"""Responses of one prompt put into order: by ratings, by stated ranks; one text is one response."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Preference, PromptText, Response

Ranking = tuple[tuple[int, ...], ...]


def rank_by(values: Sequence[float]) -> Ranking:
    """Groups of positions from the largest value to the smallest, equal values together."""
    return tuple(
        tuple(i for i, value in enumerate(values) if value == level) for level in sorted(set(values), reverse=True)
    )


def ranked(prompt: PromptText, responses: Sequence[Response], ranking: Ranking) -> Preference:
    """The record of ranked responses; a text that stands among them twice must be ranked alike, and is taken once."""
    if not responses:
        raise UnusableRowError("it holds no responses")
    first: dict[str, int] = {}
    place = [first.setdefault(response.text, len(first)) for response in responses]
    if len(first) == len(responses):
        return Preference(prompt=prompt, responses=tuple(responses), ranking=ranking)
    groups = [list(dict.fromkeys(place[number] for number in group)) for group in ranking]
    flat = [number for group in groups for number in group]
    if len(set(flat)) != len(flat):
        raise UnusableRowError("the same text is ranked twice, better and worse than itself")
    kept = [next(r for r in responses if r.text == text) for text in first]
    return Preference(prompt=prompt, responses=tuple(kept), ranking=tuple(tuple(group) for group in groups))


def rated(prompt: PromptText, responses: Sequence[Response]) -> Preference:
    """The record of responses that all have a rating, best first; several ratings of one text are averaged."""
    by_text: dict[str, list[Response]] = {}
    for response in responses:
        by_text.setdefault(response.text, []).append(response)
    averaged = [replace(same[0], rating=_mean(same)) for same in by_text.values()]
    if not averaged:
        raise UnusableRowError("it holds no responses")
    ranking = rank_by([_mean([response]) for response in averaged]) if len(averaged) > 1 else ()
    return Preference(prompt=prompt, responses=tuple(averaged), ranking=ranking)


def gather(records: Iterable[Preference]) -> list[Preference]:
    """The records, those with a single rated response merged by prompt and ranked by rating, in order of first sight."""
    merged: dict[str, list[Preference]] = {}
    for number, record in enumerate(records):
        alone = len(record.responses) == 1 and record.responses[0].rating is not None
        key = record.key if alone and record.prompt else f"#{number}"
        merged.setdefault(key, []).append(record)
    return [group[0] if len(group) == 1 else _merge(group) for group in merged.values()]


def _merge(group: Sequence[Preference]) -> Preference:
    found = rated(group[0].prompt, [record.responses[0] for record in group])
    return replace(group[0], responses=found.responses, ranking=found.ranking)


def _mean(responses: Sequence[Response]) -> float:
    return fmean(response.rating for response in responses if response.rating is not None)
