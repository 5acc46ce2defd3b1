"""The pairs of one prompt as one ranking."""

from collections.abc import Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from rayrlhf.data.schema import Preference, Response


def merge_pairs(records: Sequence[Preference]) -> list[Preference]:
    """The records, the pairs of each prompt as one ranking of all their responses, in order of first sight.

    A ranking says that each response of a group beats each one of the groups below, so the pairs must say so too, by
    themselves or through others (a over b, b over c). Where they leave that open or contradict each other they stay
    pairs, as do those with margins. Responses of one group were not compared: `reward.loss.learn_ties=false` keeps a
    loss from calling them equal. Each text is then run once a step, not once a pair, and a prompt with many pairs weighs
    no more than another (Ouyang et al. 2022, section 3.5). Probability and weight are the means over the pairs.
    """
    groups: dict[str, list[Preference]] = {}
    for number, record in enumerate(records):
        key = record.key if record.is_pair and record.prompt else f"#{number}"
        groups.setdefault(key, []).append(record)
    return [record for group in groups.values() for record in _merged(group)]


def _merged(pairs: Sequence[Preference]) -> Sequence[Preference]:
    if len(pairs) == 1 or any(record.margin for record in pairs):
        return pairs
    known: dict[str, Response] = {r.text: r for record in pairs for r in record.responses}
    number = {text: i for i, text in enumerate(known)}
    ranking = _ranking([(number[r.chosen], number[r.rejected]) for r in pairs], len(known))
    if ranking is None:
        return pairs
    means = {name: sum(getattr(r, name) for r in pairs) / len(pairs) for name in ("probability", "weight")}
    return [replace(pairs[0], responses=tuple(known.values()), ranking=ranking, **means)]


def _ranking(wins: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, ...], ...] | None:
    """Groups from best to worst, each response as high as its losses allow; None where the wins do not imply them."""
    losers: list[set[int]] = [set() for _ in range(count)]
    winners: list[set[int]] = [set() for _ in range(count)]
    for winner, loser in wins:
        losers[winner].add(loser)
        winners[loser].add(winner)
    try:
        order = list(TopologicalSorter(dict(enumerate(winners))).static_order())
    except CycleError:
        return None
    level = [0] * count
    for number in order:
        level[number] = 1 + max((level[better] for better in winners[number]), default=-1)
    below: list[set[int]] = [set() for _ in range(count)]
    for number in reversed(order):
        below[number] = losers[number].union(*(below[loser] for loser in losers[number]))
    if any(len(below[i]) != sum(other > level[i] for other in level) for i in range(count)):
        return None
    return tuple(tuple(i for i in range(count) if level[i] == own) for own in range(max(level) + 1))
