"""The built-in task: a guest remarks on things at an inn, and the host answers.

How good an answer truly is can be computed (`gold`): it hears every remark, promises what fits each, is courteous,
and is well formed. Courtesy saturates and long answers lose, while in the demonstrations more of either goes with better
answers: a reward model that learns from them can be led astray, as real ones can.
"""

import re
from collections.abc import Iterator

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import TaskConfig
from rayrlhf.data.innkeeper_language import (
    ASIDES,
    COURTESIES,
    OPENINGS,
    RUDE,
    STATES,
    Remark,
    acknowledgements,
    all_remarks,
    deeds,
    grammar,
)
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, Split, pair

_HEARD, _HELPED, _COURTEOUS, _FORMED = 0.3, 0.3, 0.2, 0.2
_FAULT = 0.1
_ENOUGH_COURTESY = 2
_MARGIN = 0.3
"""Least difference in gold between the responses of a preference pair."""

_REMARK = re.compile(r"\bthe (\w+) was (\w+)", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.]*\.|[^.]+$")


def gold(prompt: str, response: str) -> float:
    """The true reward in [0, 1] of answering `prompt` with `response`; defined for any two strings.

    0.3 for hearing the remarks, 0.3 for promising what fits them, 0.1 for each of at most two different courtesies and
    0.2 for form (only whole sentences of the grammar, none twice, not more than needed); less 0.1 for each fault: a
    sentence outside the grammar, a rude one, one said before, one about something the guest did not say, one too many.
    """
    remarks = remarks_of(prompt)
    if not remarks:
        return 0.0
    heard: set[Remark] = set()
    helped: set[Remark] = set()
    courtesies: set[str] = set()
    seen: set[str] = set()
    faults = 0
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(response) if sentence.strip()]
    for sentence in sentences:
        meaning = grammar().get(sentence)
        if meaning is None or sentence in seen or meaning.kind == "rude":
            faults += 1
        elif meaning.kind == "courtesy":
            courtesies.add(sentence)
        elif meaning.remark is None or meaning.remark not in remarks:
            faults += 1
        else:
            (heard if meaning.kind == "acknowledge" else helped).add(meaning.remark)
        seen.add(sentence)
    faults += max(0, len(sentences) - 2 * len(remarks) - _ENOUGH_COURTESY)
    value = (
        _HEARD * len(heard) / len(remarks)
        + _HELPED * len(helped) / len(remarks)
        + _COURTEOUS * min(len(courtesies), _ENOUGH_COURTESY) / _ENOUGH_COURTESY
        + (_FORMED if sentences and not faults else 0.0)
        - _FAULT * faults
    )
    return min(1.0, max(0.0, value))


def remarks_of(prompt: str) -> set[Remark]:
    """What a guest remarked on."""
    found = ((thing.lower(), state.lower()) for thing, state in _REMARK.findall(prompt))
    return {Remark(thing, state) for thing, state in found if state in STATES.get(thing, ())}


def best_answer(prompt: str) -> str:
    """An answer with the greatest gold: 1 for every prompt of the task."""
    parts: list[str] = []
    for remark in sorted(remarks_of(prompt), key=lambda r: (r.thing, r.state)):
        parts += [acknowledgements(remark)[0], deeds(remark)[0]]
    return " " + " ".join([*parts, *COURTESIES[:_ENOUGH_COURTESY]])


class Innkeeper:
    """The task's data sets, generated from a seed."""

    def __init__(self, config: TaskConfig, *, seed: int, heldout_fraction: float) -> None:
        self._config = config
        self._seed = seed
        self._prompts = self._all_prompts(heldout_fraction)

    def prompts(self) -> Split[PromptRow]:
        """Prompts to answer; held-out ones occur in no other data set's training part."""
        return Split(
            train=[PromptRow(prompt=p) for p in self._prompts.train],
            heldout=[PromptRow(prompt=p) for p in self._prompts.heldout],
        )

    def demonstrations(self) -> Split[Demonstration]:
        """Answers of hosts from careless to excellent."""
        rng = np.random.default_rng(derive_seed(self._seed, "innkeeper", "demonstrations"))

        def write(prompts: list[str], count: int) -> list[Demonstration]:
            chosen = [prompts[int(i)] for i in rng.integers(len(prompts), size=count)]
            return [Demonstration(prompt=p, response=_answer(p, rng, skill=rng.uniform())) for p in chosen]

        heldout = max(1, self._config.demonstrations // 10)
        return Split(
            train=write(self._prompts.train, self._config.demonstrations), heldout=write(self._prompts.heldout, heldout)
        )

    def preferences(self) -> Split[Preference]:
        """Pairs of such answers, the better first but for the label noise."""
        rng = np.random.default_rng(derive_seed(self._seed, "innkeeper", "preferences"))

        def judge(prompts: list[str], count: int) -> list[Preference]:
            return [next(self._pairs(prompts, rng)) for _ in range(count)]

        heldout = max(1, self._config.preferences // 16)
        return Split(
            train=judge(self._prompts.train, self._config.preferences), heldout=judge(self._prompts.heldout, heldout)
        )

    def _pairs(self, prompts: list[str], rng: np.random.Generator) -> Iterator[Preference]:
        while True:
            prompt = prompts[int(rng.integers(len(prompts)))]
            first, second = (_answer(prompt, rng, skill=rng.uniform()) for _ in range(2))
            difference = gold(prompt, first) - gold(prompt, second)
            if abs(difference) < _MARGIN:
                continue
            flipped = rng.uniform() < self._config.label_noise
            better, worse = (first, second) if (difference > 0) != flipped else (second, first)
            yield pair(prompt, better, worse)

    def _all_prompts(self, heldout_fraction: float) -> Split[str]:
        """Every remark in every wording, with every aside."""
        rng = np.random.default_rng(derive_seed(self._seed, "innkeeper", "prompts"))
        texts = [
            f"Guest: {opening.format(x=remark.thing, p=remark.state)}{aside}\nHost:"
            for remark in all_remarks()
            for opening in OPENINGS
            for aside in ASIDES
        ]
        order = rng.permutation(len(texts))
        cut = round(len(texts) * heldout_fraction)
        return Split(train=[texts[i] for i in order[cut:]], heldout=[texts[i] for i in order[:cut]])


def _answer(prompt: str, rng: np.random.Generator, *, skill: float) -> str:
    """A host's answer: with more skill more is heard, the deeds fit, and courtesy is shown."""
    parts: list[str] = []
    remarks = sorted(remarks_of(prompt), key=lambda r: prompt.lower().index(f"the {r.thing} "))
    for remark in remarks:
        if rng.uniform() < 0.25 + 0.7 * skill:
            understood = rng.uniform() < 0.92 + 0.08 * skill
            parts.append(_choose(acknowledgements(remark if understood else _other(remark, rng)), rng))
        if rng.uniform() < 0.15 + 0.75 * skill:
            fits = rng.uniform() < 0.88 + 0.12 * skill
            parts.append(_choose(deeds(remark if fits else _other(remark, rng)), rng))
    parts += [_choose(COURTESIES, rng) for chance in (0.2 + 0.6 * skill, 0.1 + 0.4 * skill) if rng.uniform() < chance]
    if rng.uniform() < 0.5 * (1.0 - skill):
        parts.insert(int(rng.integers(len(parts) + 1)), _choose(RUDE, rng))
    if parts and rng.uniform() < 0.3 * (1.0 - skill):
        parts.append(parts[-1])
    return " " + " ".join(parts or [_choose(RUDE, rng)])


def _other(remark: Remark, rng: np.random.Generator) -> Remark:
    """The same thing in another state, or another thing: a deed that does not fit."""
    states = [state for state in STATES[remark.thing] if state != remark.state]
    if rng.uniform() < 0.7:
        return Remark(remark.thing, _choose(tuple(states), rng))
    things = [thing for thing in STATES if thing != remark.thing and remark.state in STATES[thing]]
    return Remark(_choose(tuple(things), rng), remark.state)


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
