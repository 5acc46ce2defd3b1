"""Rewards by comparison: what a judge says of pairs, as a score of each response."""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from operator import add

import numpy as np

from rayrlhf.algorithms.bradley_terry import bradley_terry
from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.data.schema import key_of
from rayrlhf.reward.comparator import Comparator, Comparison, Contest
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing
from rayrlhf.types import Unanswered


class JudgeTerm:
    """A judge as a term of the reward.

    A group's scores are Bradley and Terry's, around 0. A response that is alone is compared with its prompt's reference,
    else with the judge's own answer, which is asked for once; its score is how far it is ahead. A response of which no
    comparison has a result has no score.
    """

    def __init__(self, comparator: Comparator, *, name: str, comparisons: int | None, seed: int) -> None:
        """`comparisons` others that each response meets, all by default; `seed` draws them."""
        self._comparator = comparator
        self._name = name
        self._comparisons = comparisons
        self._seed = seed
        self._own: dict[str, str] = {}
        """The judge's answers by prompt."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """A score for each request, in order."""
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.group, []).append(place)
        whole = [[requests[place] for place in places] for places in groups.values()]
        opponents = self._opponents([group[0] for group in whole if len(group) == 1])
        contests, scores = [], {}
        for places, group in zip(groups.values(), whole, strict=True):
            opponent = opponents.get(group[0].name) if len(group) == 1 else None
            if isinstance(opponent, Unanswered):
                scores[places[0]] = self._missing(group[0], f"gave no answer of its own: {opponent.reason}")
            else:
                contests.append((places, self._contest(group, opponent)))
        found = self._comparator.compare_all([contest for _, contest in contests])
        for (places, contest), comparisons in zip(contests, found, strict=True):
            named = [requests[place] for place in places]
            scores |= dict(zip(places, self._scores(named, contest, comparisons), strict=True))
        return [scores[place] for place in range(len(requests))]

    def _contest(self, group: Sequence[ScoreRequest], opponent: str | None) -> Contest:
        responses = [request.response for request in group]
        if opponent is not None:
            responses.append(opponent)
        pairs = drawn_pairs(len(responses), self._comparisons, derive_seed(self._seed, *(r.name for r in group)))
        return Contest(prompt=group[0].prompt, responses=responses, pairs=pairs, unit=group[0].unit)

    def _scores(
        self, group: Sequence[ScoreRequest], contest: Contest, comparisons: Sequence[Comparison]
    ) -> list[TermScore]:
        """Of the group's own responses, which come first in the contest."""
        wins = np.zeros((len(contest.responses), len(contest.responses)))
        for comparison in comparisons:
            i, j = comparison.pair
            if comparison.probability is not None:
                wins[i, j], wins[j, i] = comparison.probability, 1.0 - comparison.probability
        values = bradley_terry(wins)
        if len(group) == 1:
            values -= values[1]
        return [
            self._score(request, float(values[number]), [c for c in comparisons if number in c.pair])
            for number, request in enumerate(group)
        ]

    def _score(self, request: ScoreRequest, value: float, own: Sequence[Comparison]) -> TermScore:
        account = reduce(add, (comparison.account for comparison in own))
        if not account.read:
            return self._missing(request, f"compared it {account.asked} times without a result: {own[0].reason}")
        return TermScore(value=value, comparisons=account)

    def _missing(self, request: ScoreRequest, told: str) -> TermScore:
        return missing(f"{self._name} {told}, for sample {request.name}")

    def _opponents(self, alone: Sequence[ScoreRequest]) -> dict[str, str | Unanswered]:
        """What each response that is alone is compared with, by the name of its sample."""
        asked = {key_of(r.prompt, []): r for r in alone if r.reference is None}
        asked = {key: request for key, request in asked.items() if key not in self._own}
        if asked:
            prompts, units = zip(*((r.prompt, r.unit) for r in asked.values()), strict=True)
            answers = dict(zip(asked, self._comparator.answers(prompts, units), strict=True))
        else:
            answers = {}
        self._own |= {key: answer for key, answer in answers.items() if isinstance(answer, str)}
        known = answers | self._own
        return {r.name: known[key_of(r.prompt, [])] if r.reference is None else r.reference for r in alone}


def drawn_pairs(count: int, comparisons: int | None, seed: int) -> list[tuple[int, int]]:
    """The pairs of `count` responses to compare: all, or a ring in random order with `comparisons` neighbours for each."""
    if comparisons is None or comparisons >= count - 1:
        return list(combinations(range(count), 2))
    ring = np.random.default_rng(seed).permutation(count).tolist()
    steps = range(1, comparisons // 2 + 1)
    return sorted(tuple(sorted((ring[i], ring[(i + step) % count]))) for i in range(count) for step in steps)
