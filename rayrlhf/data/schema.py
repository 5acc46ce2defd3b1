"""Rows of text, before any tokenizer has seen them."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Message = dict[str, str]
PromptText = str | list[Message]
"""Plain text, or chat messages with `role` and `content`."""

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: PromptText
    response: str
    origin: str = ""
    """File and line, for error messages."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt and two responses, the first preferred."""

    prompt: PromptText
    chosen: str
    rejected: str
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt to answer."""

    prompt: PromptText
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Split(Generic[Row]):
    """Rows to train on and rows to judge by; no prompt is in both."""

    train: list[Row]
    heldout: list[Row]
