"""A language model behind HTTP, in the form of chat completions."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rayrlhf.config import JudgeReward
from rayrlhf.errors import ConfigError
from rayrlhf.reward.servers import Servers
from rayrlhf.types import Unanswered

T = TypeVar("T")

_PATH = "/chat/completions"
_MOST_LOGPROBS = 20
"""As many as servers give by default."""


class ChatServers:
    """Asks servers of /chat/completions; rounding there is not ours, so that units make no difference."""

    def __init__(self, settings: JudgeReward) -> None:
        """ConfigError where the variable that is to hold the key does not."""
        headers = {}
        if settings.key_env is not None:
            headers["Authorization"] = f"Bearer {key_in(settings.key_env)}"
        self._servers = Servers(settings, headers=headers)
        self._model = settings.model

    def choose(
        self, questions: Sequence[str], options: tuple[str, str], *, units: Sequence[int]
    ) -> list[float | Unanswered]:
        """The probability of the first of two answers of one letter, of the two; one that is not among the likeliest tokens
        has none of it."""
        del units
        more = {"max_tokens": 1, "logprobs": True, "top_logprobs": _MOST_LOGPROBS}

        def read(choice: dict[str, Any], url: str) -> float | Unanswered:
            return _share(choice, options, url)

        return self._ask(questions, read, what="log-probs that can be read", **more)

    def write(self, questions: Sequence[str], *, max_tokens: int, units: Sequence[int]) -> list[str | Unanswered]:
        """What it writes, the likeliest token each time."""
        del units
        return self._ask(questions, _text, what="text", max_tokens=max_tokens)

    def _ask(
        self, questions: Sequence[str], read: Callable[[dict[str, Any], str], T], *, what: str, **more: Any
    ) -> list[T | Unanswered]:
        bodies = [
            {"model": self._model, "messages": [{"role": "user", "content": question}], "temperature": 0.0, **more}
            for question in questions
        ]
        return self._servers.ask(_PATH, bodies, lambda answer, url: read(answer["choices"][0], url), what=what)


def key_in(variable: str) -> str:
    """The key that an environment variable holds; ConfigError where it holds none."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"The environment variable {variable}, which key_env of a judge names, holds no key here: export it where the "
            f"scoring workers start."
        )
    return key


def _share(choice: dict[str, Any], options: tuple[str, str], url: str) -> float | Unanswered:
    """Of the first option in the probability of both."""
    if not choice["logprobs"]:
        return Unanswered(f"{url} gives no log-probs: a judge there needs verdict: text")
    mass = dict.fromkeys(options, 0.0)
    for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
        token = entry["token"].strip()
        if token in mass:
            mass[token] += math.exp(entry["logprob"])
    first, second = (mass[option] for option in options)
    if not 0.0 < first + second < math.inf:
        return Unanswered(f"{url} answered with neither {options[0]} nor {options[1]} among its likeliest tokens")
    return first / (first + second)


def _text(choice: dict[str, Any], url: str) -> str | Unanswered:
    content = choice["message"]["content"]
    return content if isinstance(content, str) else Unanswered(f"{url} answered without a text")
