"""Text records as token sequences; a row that cannot be one is a bad row."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.config import RunConfig
from rayrlhf.config.data import Reading
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.exchange import (
    AS_IT_IS,
    control_strings_in,
    encode_exchange,
    encode_judged,
    encode_prompt,
    judged_prompt_length,
)
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Demonstration, Preference, PromptRow
from rayrlhf.data.special_tokens import ControlStrings
from rayrlhf.data.tokenizer import prompt_as_text
from rayrlhf.types import Example, PreferenceExample, Prompt

Row = TypeVar("Row", Demonstration, Preference, PromptRow)
Record = TypeVar("Record")


class Encoder(NamedTuple, Generic[Row, Record]):
    """From text to tokens, for one kind of rows."""

    what: str
    encode: Callable[[Row, int], Record]
    """The record of a row, by its place among the rows of its part; UnusableRowError where there is none."""
    responses: Callable[[Row], list[str]]
    """What people wrote beside the prompt."""
    overlong: Callable[[Record], bool] = lambda _: False
    """Whether a record is beyond the limit without its row being a bad one."""
    drops: bool = False
    """Whether those that are overlong are left out."""


@dataclass(kw_only=True)
class Account:
    """What was met in some rows on their way to tokens."""

    what: str
    controls: ControlStrings
    bad: list[str] = field(default_factory=list)
    encoded: int = 0
    overlong: int = 0

    def add(self, later: "Account") -> None:
        """Count what was met in the rows that come next."""
        self.controls.merge(later.controls)
        self.bad += later.bad
        self.encoded += later.encoded
        self.overlong += later.overlong

    def told(self, config: RunConfig) -> list[str]:
        """Sentences on all of it but the bad rows."""
        controls = self.controls.told(config.data.special_tokens_in_text)
        limit, mode = config.reward_max_length, config.reward.overlong
        done = f"more than {limit} tokens and are left out" if mode == "drop" else f"a response cut at {limit} tokens"
        told = f"{self.overlong} of {self.encoded} {self.what} have {done} (reward.overlong={mode})."
        return ([] if controls is None else [controls]) + ([told] if self.overlong else [])


def demonstration_encoder(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Encoder[Demonstration, Example]:
    """A demonstration longer than model.max_length is a bad row."""

    def encode(row: Demonstration, number: int) -> Example:  # noqa: ARG001
        prompt, (response,) = encode_exchange(tokenizer, row.prompt, [row.response], reading=config.data.reading)
        _check_length(len(prompt) + len(response), config.model.max_length, "prompt and response", "model.max_length")
        return Example(token_ids=np.concatenate([prompt, response]), prompt_length=len(prompt))

    return Encoder("demonstrations", encode, lambda row: [row.response])


def preference_encoder(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Encoder[Preference, PreferenceExample]:
    """What becomes of preferences too long for the reward model says reward.overlong."""
    limit, mode = config.reward_max_length, config.reward.overlong
    key = "model.max_length" if config.reward.max_length is None else "reward.max_length"

    def encode(row: Preference, number: int) -> PreferenceExample:  # noqa: ARG001
        cut = limit if mode == "cut" else None
        found = encode_preference(row, tokenizer, cut=cut, reading=config.data.reading)
        if mode == "refuse":
            _check_length(found.longest, limit, "a response with its prompt", key)
        if mode == "cut":
            _demand_difference(row, found, limit)
        return found

    return Encoder(
        "preferences",
        encode,
        lambda row: [response.text for response in row.responses],
        overlong=lambda found: max(found.lengths) > limit,
        drops=mode == "drop",
    )


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Encoder[PromptRow, Prompt]:
    """A prompt longer than data.max_prompt_tokens is a bad row. Ids are the places of the rows in their part."""

    def encode(row: PromptRow, number: int) -> Prompt:
        ids = encode_prompt(tokenizer, row.prompt, reading=config.data.reading)
        if not len(ids):
            raise UnusableRowError("the prompt has no tokens")
        _check_length(len(ids), config.data.max_prompt_tokens, "the prompt", "data.max_prompt_tokens")
        return Prompt(prompt_id=number, text=prompt_as_text(row.prompt), token_ids=ids)

    return Encoder("prompts", encode, lambda _: [])


def encode_rows(
    rows: Iterable[Row], encoder: Encoder[Row, Record], tokenizer: PreTrainedTokenizerBase, *, first: int = 0
) -> tuple[list[Record], Account]:
    """The records of rows of which the `first` has that place in its part, and what was met in them."""
    account = Account(what=encoder.what, controls=ControlStrings(what=f"the {encoder.what}"))
    kept = []
    for number, row in enumerate(rows, start=first):
        account.controls.add(control_strings_in(tokenizer, row.prompt, encoder.responses(row)))
        try:
            record = encoder.encode(row, number)
        except UnusableRowError as reason:
            account.bad.append(f"{row.origin or f'row {number}'}: {reason}")
            continue
        overlong = encoder.overlong(record)
        account.encoded += 1
        account.overlong += overlong
        if not (overlong and encoder.drops):
            kept.append(record)
    return kept, account


def encode_preference(
    row: Preference,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cut: int | None = None,
    reading: Reading = AS_IT_IS,
) -> PreferenceExample:
    """The token sequences of one preference, each prompt and response, at most `cut` tokens of each."""
    texts = [response.text for response in row.responses]
    whole = encode_judged(tokenizer, row.prompt, texts, reading=reading)
    return PreferenceExample(
        sequences=tuple(sequence[:cut] for sequence in whole),
        lengths=tuple(len(sequence) for sequence in whole),
        prompt_length=judged_prompt_length(tokenizer, row.prompt, reading=reading),
        ranks=row.ranks,
        ratings=tuple(float("nan") if r.rating is None else r.rating for r in row.responses),
        labels=tuple(float("nan") if r.label is None else float(r.label) for r in row.responses),
        probability=row.probability,
        margin=row.margin,
        weight=row.weight,
    )


def usable_rows(rows: Sequence[Row], encode: Callable[[Row], Record], bad: BadRows) -> list[tuple[Row, Record]]:
    """The rows that can be encoded, with what each became; the others are in the account `bad`."""
    usable = []
    for number, row in enumerate(rows):
        try:
            usable.append((row, encode(row)))
        except UnusableRowError as reason:
            bad.add(row.origin or f"row {number}", str(reason))
    return usable


def _check_length(tokens: int, limit: int, what: str, key: str) -> None:
    if tokens > limit:
        raise UnusableRowError(f"{what} has {tokens} tokens and {key} is {limit}")


def _demand_difference(row: Preference, found: PreferenceExample, limit: int) -> None:
    """UnusableRowError where a better and a worse response are the same tokens once they are cut."""
    for better, worse in row.strict_pairs():
        if np.array_equal(found.sequences[better], found.sequences[worse]):
            raise UnusableRowError(f"cut at {limit} tokens a better and a worse response are the same")
