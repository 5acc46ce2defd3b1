"""What every scorer of responses is asked, and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int32

from rayrlhf.data.schema import PromptText
from rayrlhf.types import Comparisons


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """One response to be scored."""

    name: str
    """Of the sample, for messages."""
    prompt: PromptText
    response: str
    token_ids: Int32[np.ndarray, " time"]
    """Prompt and response as the policy's tokens."""
    finished: bool
    """The response ended by itself; it was not cut at the limit."""
    reference: str | None = None
    group: int = 0
    """Requests of one group are the responses to one prompt that were drawn together."""
    unit: int = 0
    """Requests of different units share no forward pass."""


@dataclass(frozen=True, kw_only=True)
class TermScore:
    """One term's answer."""

    value: float | None
    """None where the score could not be had: it is missing, never zero."""
    spread: float | None = None
    """Standard deviation over an ensemble's members."""
    comparisons: Comparisons | None = None
    """A judge's, that the value comes from."""
    reason: str = ""
    """Why the value is missing."""


class Term(Protocol):
    """One scorer; built once in its worker, asked for many batches."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """A score for each request, in order; groups come whole. An error is raised only where no request can ever be
        scored."""


def missing(reason: str) -> TermScore:
    """A score that could not be had."""
    return TermScore(value=None, reason=reason)
