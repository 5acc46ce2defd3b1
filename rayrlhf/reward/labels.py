"""Who says which of two responses is better, the gold of a task or a function of one's own; and pairs labelled by that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RunConfig
from rayrlhf.data.on_policy import Answer, AnswerPair, Bin, bins_of, shares_of
from rayrlhf.data.schema import Preference, pair
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.reward.function import FunctionTerm
from rayrlhf.reward.importable import check_importable
from rayrlhf.reward.terms import ScoreRequest

GOLD = "gold"
_BINS = 6
"""Of updates, each a subset of the preferences that are made of the pairs."""


class Labeller(Protocol):
    """Compares responses."""

    name: str

    def label(self, pairs: Sequence[AnswerPair]) -> list["Label"]:
        """Of each pair, in order: the probability that its first response is the better one, 0.5 for a tie; or, in
        words, why there is none."""


Label = float | str


class GoldLabels:
    """By the true reward that the samples hold."""

    name = GOLD

    def label(self, pairs: Sequence[AnswerPair]) -> list[Label]:
        """The greater gold is better; equal gold is a tie."""
        return [_by_values(pair.first.gold, pair.second.gold) for pair in pairs]


class FunctionLabels:
    """By `package.module:function` of (prompt, response, reference), the greater number the better."""

    def __init__(self, target: str, config: RunConfig) -> None:
        scoring = config.scoring
        check_importable(target, timeout=scoring.start_timeout / 5)
        self.name = target
        self._term = FunctionTerm(target, timeout=scoring.function_timeout_s, start_timeout=scoring.start_timeout)

    def label(self, pairs: Sequence[AnswerPair]) -> list[Label]:
        """Two calls a pair."""
        answers = [answer for pair in pairs for answer in (pair.first, pair.second)]
        found = self._term.score([_request(answer, number) for number, answer in enumerate(answers)])
        sides = zip(found[::2], found[1::2], strict=True)
        return [a.reason or b.reason or _by_values(a.value, b.value) for a, b in sides]


def labeller_of(label: str | None, answers: Sequence[Answer], config: RunConfig) -> Labeller:
    """The one that was asked for; gold where nothing was and the samples have it. ConfigError where there is none."""
    has_gold = any(answer.gold is not None for answer in answers)
    choices = "--label package.module:function, which takes a prompt, a response and a reference and returns a number"
    if label in (None, GOLD):
        if has_gold:
            return GoldLabels()
        asked = "and --label gold asks for it" if label == GOLD else "and no --label was given"
        raise ConfigError(f"The samples of this run hold no gold, {asked}: give {choices}.")
    assert label is not None
    if ":" not in label:
        raise ConfigError(f"--label {label} must be gold, or {choices.removeprefix('--label ')}.")
    return FunctionLabels(label, config)


@dataclass(kw_only=True)
class Drawn:
    """Labelled pairs."""

    preferences: list[Preference]
    """Each in the subset of its bin's name."""
    bins: list[Bin]
    """Of the updates."""
    ties: int
    reasons: list[str]
    """Why pairs have no label."""

    def demand_labels(self, name: str, *, allowed: float) -> None:
        """DataError where more than a share of the pairs that were asked for could not be labelled."""
        asked = len(self.preferences) + self.ties + len(self.reasons)
        if len(self.reasons) > allowed * asked:
            raise DataError(
                f"{len(self.reasons):,} of {asked:,} pairs have no label by {name}, and ppo.max_missing={allowed:g} allows "
                f"a smaller share; the first: {self.reasons[0]}."
            )


def draw_labelled(pairs: Sequence[AnswerPair], labeller: Labeller, count: int, *, seed: int) -> Drawn:
    """At most `count` pairs that are no ties, from all updates alike as far as these have them.

    Pairs are asked for in turns, a shortfall by ties in the next one, so that no more are labelled than it takes.
    """
    queues: dict[int, list[AnswerPair]] = {}
    for one in pairs:
        queues.setdefault(one.update, []).append(one)
    updates = sorted(queues)
    for update in updates:
        order = np.random.default_rng(derive_seed(seed, "draw", update)).permutation(len(queues[update]))
        queues[update] = [queues[update][i] for i in order]
    short = dict(zip(updates, shares_of(count, len(updates)), strict=True)) if updates else {}
    bins = bins_of(updates, _BINS)
    names = {update: own.name for own in bins for update in updates if own.first <= update <= own.last}
    found = Drawn(preferences=[], bins=bins, ties=0, reasons=[])
    while batch := [one for update in updates for one in _take(queues[update], short[update])]:
        for one, label in zip(batch, labeller.label(batch), strict=True):
            if isinstance(label, str):
                found.reasons.append(label)
            elif label == 0.5:
                found.ties += 1
            else:
                found.preferences.append(_preference(one, label, names[one.update]))
                short[one.update] -= 1
    return found


def _take(queue: list[AnswerPair], count: int) -> list[AnswerPair]:
    taken = queue[:count]
    del queue[:count]
    return taken


def _preference(one: AnswerPair, label: float, subset: str) -> Preference:
    better, worse = (one.first, one.second) if label > 0.5 else (one.second, one.first)
    probability = max(label, 1.0 - label)
    return pair(one.first.prompt, better.response, worse.response, probability=probability, subset=subset)


def _by_values(first: float | None, second: float | None) -> Label:
    if first is None or second is None:
        return "a sample holds no gold"
    return float(np.heaviside(first - second, 0.5))


def _request(answer: Answer, number: int) -> ScoreRequest:
    return ScoreRequest(
        name=f"{number} of update {answer.update}",
        prompt=answer.prompt,
        response=answer.response,
        token_ids=np.empty(0, dtype=np.int32),
        finished=True,
        reference=answer.reference,
        group=number,
    )
