"""Pairs of a policy's own responses, from the samples of its run."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.data.schema import PromptText, key_of
from rayrlhf.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response that the policy gave in training."""

    update: int
    prompt: PromptText
    response: str
    reference: str | None = None
    gold: float | None = None
    """The task's true reward."""


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """Two responses to one prompt, in no order."""

    first: Answer
    second: Answer

    @property
    def update(self) -> int:
        """When the pair was there: with the later of the two."""
        return max(self.first.update, self.second.update)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a run's samples hold for pairs."""

    usable: list[Answer]
    cut: int
    """Left out: cut at the length limit, a text that no preference data has."""
    empty: int
    """Left out: without a text."""


class Bin(NamedTuple):
    """Updates from the first to the last."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """As a subset of preferences is called."""
        return f"update {self.first}" if self.first == self.last else f"updates {self.first} to {self.last}"


def read_answers(path: Path, prompts: Mapping[str, PromptText]) -> Answers:
    """The training samples of the ppo stage in samples.jsonl; `prompts` has what each prompt was before it became tokens.

    DataError for a line that is none, and for a prompt that is not known.
    """
    rows = [row for row in _rows(path) if row["stage"] == "ppo"]
    whole = [row for row in rows if row["finish"] != "length"]
    lost = next((row["prompt"] for row in whole if row["prompt"] not in prompts), None)
    if lost is not None:
        raise DataError(
            f"{path} holds the prompt {lost!r}, which is not among the run's prompts: its data have changed."
        )
    usable = [
        Answer(
            update=row["step"],
            prompt=prompts[row["prompt"]],
            **{key: row[key] for key in ("response", "reference", "gold")},
        )
        for row in whole
        if row["response"].strip()
    ]
    return Answers(usable=usable, cut=len(rows) - len(whole), empty=len(whole) - len(usable))


def pair_up(answers: Sequence[Answer], *, seed: int) -> list[AnswerPair]:
    """Pairs of different texts in which every answer is used once at most.

    Two by two, in a seeded order, among the answers of one update to one prompt; what is left alone there, with what was
    left alone of the same prompt at the nearest later update.
    """
    groups: dict[str, dict[int, dict[str, Answer]]] = defaultdict(lambda: defaultdict(dict))
    for answer in answers:
        groups[key_of(answer.prompt, [])][answer.update].setdefault(answer.response, answer)
    pairs = []
    for prompt, by_update in groups.items():
        alone: Answer | None = None
        for update in sorted(by_update):
            own = list(by_update[update].values())
            order = np.random.default_rng(derive_seed(seed, "pairs", prompt, update)).permutation(len(own))
            drawn = [own[i] for i in order]
            pairs += [AnswerPair(first=a, second=b) for a, b in zip(drawn[::2], drawn[1::2], strict=False)]
            if len(drawn) % 2 == 0:
                continue
            if alone is None or alone.response == drawn[-1].response:
                alone = drawn[-1]
            else:
                pairs.append(AnswerPair(first=alone, second=drawn[-1]))
                alone = None
    return pairs


def shares_of(total: int, count: int) -> list[int]:
    """`total` in `count` whole shares that differ by one at most, the larger ones spread evenly."""
    ends = [total * (i + 1) // count for i in range(count)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def bins_of(updates: Sequence[int], most: int) -> list[Bin]:
    """At most so many bins of neighbouring updates, of equal size as far as the updates divide."""
    distinct = np.array(sorted(set(updates)))
    parts = np.array_split(distinct, min(most, len(distinct))) if len(distinct) else []
    return [Bin(int(part[0]), int(part[-1])) for part in parts]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise DataError(f"Line {number} of {path} is not JSON.") from None
