"""Rows of text, before any tokenizer has seen them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Message = dict[str, Any]
"""`role` and `content`, and what a template may read beside them: tool_calls, tool_call_id, name, reasoning_content."""
PromptText = str | list[Message]
"""Plain text, or chat messages. A first message of the role TOOLS holds, as JSON, the tools that may be called."""
TOOLS = "tools"

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: PromptText
    response: str
    origin: str = ""
    """File and line, for error messages."""

    @property
    def key(self) -> str:
        """What all rows of one prompt have in common."""
        return key_of(self.prompt, [self.response])


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response, with what is known of it by itself."""

    text: str
    rating: float | None = None
    """Absolute quality, on any scale."""
    label: bool | None = None
    """Good or bad."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt and what is known about K >= 1 responses to it: the one form every preference data set is brought to."""

    prompt: PromptText
    responses: tuple[Response, ...]
    ranking: tuple[tuple[int, ...], ...] = ()
    """Groups of response numbers from best to worst; those of one group are tied. Empty where nothing is ranked."""
    probability: float = 1.0
    """Of the ranking being right: 0.5 says nothing, 1 is a hard label."""
    margin: float = 0.0
    """By how much the better response is better, on the data's own scale."""
    reference: str | None = None
    """A known good response, for metrics that compare with one."""
    subset: str = ""
    weight: float = 1.0
    origin: str = ""

    @property
    def key(self) -> str:
        """What all records of one prompt have in common."""
        return key_of(self.prompt, [response.text for response in self.responses])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each response, 0 the best; -1 where it is not ranked."""
        ranks = [-1] * len(self.responses)
        for rank, group in enumerate(self.ranking):
            for number in group:
                ranks[number] = rank
        return tuple(ranks)

    def strict_pairs(self) -> Iterator[tuple[int, int]]:
        """Every (better, worse) of the ranking: up to K (K - 1) / 2 of them."""
        for rank, group in enumerate(self.ranking):
            for better in group:
                for worse in (number for other in self.ranking[rank + 1 :] for number in other):
                    yield better, worse

    @property
    def is_pair(self) -> bool:
        """Whether this is one response over one other."""
        return len(self.responses) == 2 and len(self.ranking) == 2

    @property
    def chosen(self) -> str:
        """The better response of a pair."""
        return self.responses[self.ranking[0][0]].text

    @property
    def rejected(self) -> str:
        """The worse response of a pair."""
        return self.responses[self.ranking[1][0]].text


def pair(prompt: PromptText, chosen: str, rejected: str, **more: Any) -> Preference:
    """The record of a chosen and a rejected response."""
    return Preference(
        prompt=prompt, responses=(Response(text=chosen), Response(text=rejected)), ranking=((0,), (1,)), **more
    )


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt to answer."""

    prompt: PromptText
    reference: str | None = None
    """A good response to compare others with."""
    rewards: tuple[str, ...] | None = None
    """The reward terms that score its responses; None: all of them."""
    origin: str = ""

    @property
    def key(self) -> str:
        """What all rows of one prompt have in common."""
        return key_of(self.prompt, [])

    def scored_by(self, term: str) -> bool:
        """Whether the reward term of that name scores its responses."""
        return self.rewards is None or term in self.rewards


def key_of(prompt: PromptText, texts: Sequence[str]) -> str:
    """What tells one prompt from another; without a prompt the texts that were written tell it."""
    return json.dumps(prompt or sorted(texts), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Split(Generic[Row]):
    """Rows to train on and rows to judge by; no prompt is in both."""

    train: list[Row]
    heldout: list[Row]
    told: tuple[str, ...] = field(default=(), compare=False)
    """What was found in the source, in sentences: its form, the columns used and ignored, what was left out."""
    bad: tuple[str, ...] = field(default=(), compare=False)
    """What of it cannot be used, in sentences."""
