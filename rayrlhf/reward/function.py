"""Rewards by a Python function."""

import importlib
import math
from collections.abc import Callable, Sequence

from rayrlhf.data.tokenizer import prompt_as_text
from rayrlhf.errors import ConfigError
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing

RewardFunction = Callable[[str, str, str | None], float | None]


class FunctionTerm:
    """A function of (prompt, response, reference). What it raises, and what is no finite number, is a missing score."""

    def __init__(self, target: str) -> None:
        self.name = target
        self._function = _load(target)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """One call a request, in order."""
        return [self._one(request) for request in requests]

    def _one(self, request: ScoreRequest) -> TermScore:
        try:
            value = self._function(prompt_as_text(request.prompt), request.response, request.reference)
        except Exception as error:  # noqa: BLE001 - somebody else's code: whatever it raises, this sample has no score
            return missing(f"{self.name} raised {type(error).__name__}: {error}")
        if value is None:
            return missing(f"{self.name} gave no score")
        if not isinstance(value, int | float) or not math.isfinite(value):
            return missing(f"{self.name} gave {value!r}, not a finite number")
        return TermScore(value=float(value))


def _load(target: str) -> RewardFunction:
    module, _, name = target.partition(":")
    try:
        function: RewardFunction = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The reward function {target} cannot be imported by the scoring workers: {error}. It must be installed there or "
            f"lie in the job's working directory."
        ) from error
    if not callable(function):
        raise ConfigError(f"The reward function {target} is {type(function).__name__}, not a function.")
    return function
