"""Who says which of two responses is better: the gold of a task, a judge, or a function of one's own; and pairs so labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import JudgeReward, RunConfig
from rayrlhf.data.on_policy import Answer, AnswerPair, Bin, bins_of, shares_of
from rayrlhf.data.schema import Preference, pair
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.reward.chat_server import ChatServers
from rayrlhf.reward.comparator import Comparator, Contest
from rayrlhf.reward.function import FunctionTerm
from rayrlhf.reward.importable import check_importable
from rayrlhf.reward.terms import ScoreRequest

GOLD = "gold"
JUDGE = "judge"
_CHOICES = (
    "Give --label gold, where the samples have it; --label judge, with ppo.rewards=[{kind: judge, ...}]; or --label "
    "package.module:function, which takes a prompt, a response and a reference and returns a number."
)
_TIE = 1e-9
"""A probability so near to one half is rounding."""
_BINS = 6
"""Of updates, each a subset of the preferences that are made of the pairs."""


Label = float | str
"""The probability that the first response is the better one, 0.5 for a tie; or, in words, why there is none."""


class Labeller(Protocol):
    """Compares responses."""

    name: str

    def label(self, pairs: Sequence[AnswerPair]) -> list[Label]:
        """Of each pair, in order."""


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


class JudgeLabels:
    """By a language model that compares each pair in both orders."""

    def __init__(self, term: JudgeReward) -> None:
        if term.path is not None:
            raise ConfigError(
                f"The judge {term.path} runs in the scoring workers of a run: to label pairs serve it (vllm serve "
                f'{term.path}) and give ppo.rewards=[{{kind: judge, urls: [...], model: ..., principles: "..."}}].'
            )
        self.name = term.called
        self._comparator = Comparator(
            ChatServers(term), principles=term.principles, verdict=term.verdict, max_tokens=term.max_tokens
        )

    def label(self, pairs: Sequence[AnswerPair]) -> list[Label]:
        """Two questions a pair."""
        found = self._comparator.compare_all(
            [
                Contest(prompt=pair.first.prompt, responses=[pair.first.response, pair.second.response], pairs=[(0, 1)])
                for pair in pairs
            ]
        )
        return [one.reason if one.probability is None else one.probability for (one,) in found]


def labeller_of(label: str | None, answers: Sequence[Answer], config: RunConfig) -> Labeller:
    """The one that was asked for; where none was, gold if the samples have it, else the judge of ppo.rewards.

    ConfigError where there is none.
    """
    has_gold, judges = any(answer.gold is not None for answer in answers), config.ppo.judges
    if label == GOLD or (label is None and has_gold):
        if not has_gold:
            raise ConfigError(f"--label {GOLD}: the samples of this run hold no gold. {_CHOICES}")
        return GoldLabels()
    if label == JUDGE or (label is None and judges):
        if len(judges) != 1:
            raise ConfigError(f"--label {JUDGE}: there are {len(judges)} judges among ppo.rewards, not one. {_CHOICES}")
        return JudgeLabels(judges[0])
    if label is None:
        raise ConfigError(
            f"The samples of this run hold no gold, no judge is among ppo.rewards, and no --label was given. {_CHOICES}"
        )
    if ":" not in label:
        raise ConfigError(f"--label {label} is nobody. {_CHOICES}")
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
        """DataError where more than this share of the pairs that were asked for could not be labelled."""
        asked = len(self.preferences) + self.ties + len(self.reasons)
        if len(self.reasons) > allowed * asked:
            raise DataError(
                f"{len(self.reasons):,} of {asked:,} pairs have no label by {name}, and ppo.max_missing={allowed:g} allows "
                f"a smaller share; the first: {self.reasons[0]}."
            )


def draw_labelled(
    pairs: Sequence[AnswerPair], labeller: Labeller, count: int, *, seed: int, allowed: float = 0.0
) -> Drawn:
    """At most `count` pairs that are no ties, from all updates alike as far as these have them.

    Pairs are asked for in turns, a shortfall by ties in the next one, so that no more are labelled than it takes.
    DataError where more than the `allowed` share of them cannot be labelled.
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
            elif abs(label - 0.5) < _TIE:
                found.ties += 1
            else:
                found.preferences.append(_preference(one, label, names[one.update]))
                short[one.update] -= 1
        found.demand_labels(labeller.name, allowed=allowed)
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
