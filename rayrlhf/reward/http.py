"""Rewards by a server."""

from collections.abc import Sequence
from typing import Any

from rayrlhf.config import HttpReward
from rayrlhf.data.tokenizer import exchange_as_text, prompt_as_text
from rayrlhf.reward.real_number import finite_number, show
from rayrlhf.reward.servers import Servers
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing
from rayrlhf.types import Unanswered


class HttpTerm:
    """Batches of responses to servers in turn; order kept, and no request waits without end.

    What a server does not answer in time, refuses, or answers with no number is a missing score.
    """

    def __init__(self, settings: HttpReward) -> None:
        self._settings = settings
        self._servers = Servers(settings)
        self._path = "/get_reward" if settings.api == "openrlhf" else "/classify"

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """Every batch at once, at most `concurrency` of them in flight."""
        size = self._settings.batch
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        answers = self._servers.ask(self._path, [self._body(batch) for batch in batches], self._values, what="scores")
        return [score for pair in zip(batches, answers, strict=True) for score in _scores(*pair)]

    def _body(self, batch: Sequence[ScoreRequest]) -> dict[str, Any]:
        prompts = [prompt_as_text(request.prompt) for request in batch]
        texts = [exchange_as_text(request.prompt, request.response) for request in batch]
        if self._settings.api == "openrlhf":
            labels = [request.reference or "" for request in batch]
            return {"query": texts, "prompts": prompts, "labels": labels}
        # Without this vLLM squashes a single score with a sigmoid; servers before 0.11.2 know it by its second name.
        raw = {"use_activation": False, "activation": False}
        return {"model": self._settings.model, "input": texts, **raw}

    def _values(self, answer: dict[str, Any], url: str) -> tuple[str, list[Any]]:
        if self._settings.api == "openrlhf":
            return url, list(answer["rewards"])
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return url, [row["probs"][0] for row in rows]


def _scores(batch: Sequence[ScoreRequest], answer: tuple[str, list[Any]] | Unanswered) -> list[TermScore]:
    if isinstance(answer, Unanswered):
        return [missing(answer.reason)] * len(batch)
    url, values = answer
    if len(values) != len(batch):
        return [missing(f"{url} gave {len(values)} scores for {len(batch)} responses")] * len(batch)
    return [_as_score(value, url) for value in values]


def _as_score(value: Any, url: str) -> TermScore:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        return TermScore(value=finite_number(value))
    except ValueError:
        return missing(f"{url} gave {show(value)} for a score")
