"""Responses compared two by two by a language model, in both orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from rayrlhf.data.schema import PromptText
from rayrlhf.reward.questions import OPTIONS, Verdict, answer_question, comparison_question, read_verdict
from rayrlhf.types import Comparisons, Unanswered

_SHOWN = 60
_END_OF_THOUGHT = "</think>"


class ChatModel(Protocol):
    """A language model that answers questions, each by itself; questions of different units share no forward pass, where
    the model is one whose rounding that could change."""

    def choose(
        self, questions: Sequence[str], options: tuple[str, str], *, units: Sequence[int]
    ) -> list[float | Unanswered]:
        """The probability of the first of two answers of one letter, of the two."""

    def write(self, questions: Sequence[str], *, max_tokens: int, units: Sequence[int]) -> list[str | Unanswered]:
        """What it writes, the likeliest token each time."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Responses to one prompt, and which pairs of them to compare."""

    prompt: PromptText
    responses: Sequence[str]
    pairs: Sequence[tuple[int, int]]
    unit: int = 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a judge says of one pair of responses."""

    pair: tuple[int, int]
    """Their numbers."""
    ahead: float | Unanswered
    """The probability that the first of the pair is better, asked with it first."""
    behind: float | Unanswered
    """The same, asked with it second."""

    @property
    def probability(self) -> float | None:
        """That the first of the pair is better: the mean of both orders; None unless both have a result."""
        if isinstance(self.ahead, Unanswered) or isinstance(self.behind, Unanswered):
            return None
        return (self.ahead + self.behind) / 2

    @property
    def reason(self) -> str:
        """Why there is no result."""
        return next((answer.reason for answer in (self.ahead, self.behind) if isinstance(answer, Unanswered)), "")

    @property
    def account(self) -> Comparisons:
        """What it says of the judge."""
        if isinstance(self.ahead, Unanswered) or isinstance(self.behind, Unanswered):
            return Comparisons(asked=1, read=0, bias=0.0, flipped=0)
        # What stands first is better with the probabilities `ahead` and 1 - `behind`.
        flipped = (self.ahead - 0.5) * (self.behind - 0.5) < 0
        return Comparisons(asked=1, read=1, bias=(self.ahead - self.behind) / 2, flipped=int(flipped))


class Comparator:
    """A judge: a language model with principles to compare by."""

    def __init__(self, chat: ChatModel, *, principles: str, verdict: Verdict, max_tokens: int) -> None:
        """`max_tokens` of its reasoning, and of an answer of its own."""
        self._chat = chat
        self._principles = principles
        self._verdict: Verdict = verdict
        self._max_tokens = max_tokens

    def compare(self, prompt: PromptText, responses: Sequence[str]) -> list[Comparison]:
        """Every pair of responses to one prompt."""
        pairs = list(combinations(range(len(responses)), 2))
        return self.compare_all([Contest(prompt=prompt, responses=responses, pairs=pairs)])[0]

    def compare_all(self, contests: Sequence[Contest]) -> list[list[Comparison]]:
        """The pairs of each contest, in order."""
        questions, units = [], []
        for contest in contests:
            for i, j in contest.pairs:
                one, other = contest.responses[i], contest.responses[j]
                for first, second in ((one, other), (other, one)):
                    questions.append(
                        comparison_question(self._principles, contest.prompt, first, second, self._verdict)
                    )
                    units.append(contest.unit)
        answers = iter(self._verdicts(questions, units))
        return [
            [Comparison(pair=pair, ahead=next(answers), behind=_turned(next(answers))) for pair in contest.pairs]
            for contest in contests
        ]

    def answers(self, prompts: Sequence[PromptText], units: Sequence[int]) -> list[str | Unanswered]:
        """What the judge itself responds to each prompt."""
        questions = [answer_question(self._principles, prompt) for prompt in prompts]
        written = self._chat.write(questions, max_tokens=self._max_tokens, units=units)
        return [answer if isinstance(answer, Unanswered) else _response(answer) for answer in written]

    def _verdicts(self, questions: Sequence[str], units: Sequence[int]) -> list[float | Unanswered]:
        if self._verdict == "logprobs":
            return self._chat.choose(questions, OPTIONS, units=units)
        return [_read(answer) for answer in self._chat.write(questions, max_tokens=self._max_tokens, units=units)]


def _read(answer: str | Unanswered) -> float | Unanswered:
    if isinstance(answer, Unanswered):
        return answer
    verdict = read_verdict(answer)
    return Unanswered(f"it wrote no verdict: {answer[-_SHOWN:]!r}") if verdict is None else verdict


def _response(written: str) -> str:
    """Without what a reasoning model thinks before it."""
    return written.rpartition(_END_OF_THOUGHT)[2].strip()


def _turned(answer: float | Unanswered) -> float | Unanswered:
    return answer if isinstance(answer, Unanswered) else 1.0 - answer
