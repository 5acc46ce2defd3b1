"""Data sets that hold two responses and a verdict: by their columns, and by what the verdict says."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from rayrlhf.config import SourceConfig
from rayrlhf.data import fields, messages
from rayrlhf.data.fields import Row, UnusableRowError
from rayrlhf.data.prompt_forms import prompt_of
from rayrlhf.data.ranking import ranked
from rayrlhf.data.schema import Preference, PromptText, Response


@dataclass(frozen=True)
class Comparison:
    """One published form."""

    name: str
    first: str
    second: str
    """Columns of the two responses."""
    verdict: tuple[str, ...]
    """Columns that the lead is read from."""
    lead: Callable[[Row], float]
    """Above 0 where the first is better, 0 for a tie."""
    strength: bool = False
    """Whether the lead is an amount that a margin is made of."""
    whole: bool = False
    """Whether the columns hold whole conversations, prompt included."""

    def fits(self, row: Row) -> bool:
        """Whether the row has its columns."""
        return all(key in row for key in (self.first, self.second, *self.verdict))

    def read(self, row: Row, source: SourceConfig) -> Preference:
        """The record of a row that fits."""
        prompt, responses = self._sides(row, source)
        lead = self.lead(row)
        ranking = ((0,), (1,)) if lead > 0 else ((1,), (0,)) if lead < 0 else ((0, 1),)
        found = ranked(prompt, responses, ranking)
        return replace(found, margin=abs(lead)) if self.strength else found

    def _sides(self, row: Row, source: SourceConfig) -> tuple[PromptText, list[Response]]:
        if not self.whole:
            texts = [messages.response(row, key) for key in (self.first, self.second)]
            prompt: PromptText = messages.prompt(row, "history") if self.name == "SHP" else prompt_of(row, source)
            return prompt, [Response(text=text) for text in texts]
        (head, one), (other_head, two) = (messages.split_messages(row[key], key) for key in (self.first, self.second))
        if head != other_head:
            raise UnusableRowError(f"{self.first} and {self.second} do not share a prompt")
        return head, [Response(text=one), Response(text=two)]


def _number(key: str) -> Callable[[Row], float]:
    return lambda row: fields.number(row, key)


def _which(key: str, *, first: float, second: float) -> Callable[[Row], float]:
    def lead(row: Row) -> float:
        found = fields.number(row, key)
        if found not in (first, second):
            raise UnusableRowError(f"the field {key} is {found:g}, not {first:g} or {second:g}")
        return 1.0 if found == first else -1.0

    return lead


def _winner(row: Row) -> float:
    found = fields.text(row, "winner").lower()
    if found.startswith("tie"):
        return 0.0
    if found not in ("model_a", "model_b"):
        raise UnusableRowError(f"the field winner is {found!r}, not model_a, model_b or a tie")
    return 1.0 if found == "model_a" else -1.0


COMPARISONS = (
    Comparison(
        "HelpSteer3", "response1", "response2", ("overall_preference",), lambda r: -fields.number(r, "overall_preference"),
        strength=True,
    ),
    Comparison(
        "HelpSteer2 preferences", "response_1", "response_2", ("preference_strength",),
        lambda r: -fields.number(r, "preference_strength"), strength=True,
    ),
    Comparison(
        "WebGPT comparisons", "answer_0", "answer_1", ("score_0", "score_1"),
        lambda r: fields.number(r, "score_0") - fields.number(r, "score_1"),
    ),
    Comparison("AlpacaFarm", "output_1", "output_2", ("preference",), _which("preference", first=1, second=2)),
    Comparison("SHP", "human_ref_A", "human_ref_B", ("labels",), _which("labels", first=1, second=0)),
    Comparison(
        "PKU-SafeRLHF", "response_0", "response_1", ("better_response_id",), _which("better_response_id", first=0, second=1)
    ),
    Comparison("arena", "conversation_a", "conversation_b", ("winner",), _winner, whole=True),
)  # fmt: skip
"""Every form of this kind; -3 to 3 of HelpSteer3 says how much better the second response is."""


def comparison(row: Row) -> Comparison | None:
    """The form of a row, None where it is none of these."""
    return next((form for form in COMPARISONS if form.fits(row)), None)
