"""Text records as token sequences; a row that cannot be one is a bad row."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

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
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, PromptText, Split
from rayrlhf.data.special_tokens import ControlStrings
from rayrlhf.data.tokenizer import prompt_as_text
from rayrlhf.types import Example, PreferenceExample, Prompt

Row = TypeVar("Row", Demonstration, Preference, PromptRow)
Record = TypeVar("Record")
Tokenize = Callable[[Sequence[Row], PreTrainedTokenizerBase, RunConfig, BadRows | None], list[Record]]


def tokenize_demonstrations(
    rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, config: RunConfig, bad: BadRows | None = None
) -> list[Example]:
    """Token sequences of demonstrations; one longer than model.max_length is a bad row, of the account `bad` if given."""

    def encode(row: Demonstration) -> Example:
        prompt, (response,) = encode_exchange(tokenizer, row.prompt, [row.response], reading=config.data.reading)
        _check_length(len(prompt) + len(response), config.model.max_length, "prompt and response", "model.max_length")
        return Example(token_ids=np.concatenate([prompt, response]), prompt_length=len(prompt))

    _tell_control_strings([(row.prompt, [row.response]) for row in rows], tokenizer, config, "the demonstrations")
    return _encode_all(rows, encode, config, bad, "the demonstrations")


def tokenize_preferences(
    rows: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, config: RunConfig, bad: BadRows | None = None
) -> list[PreferenceExample]:
    """Token sequences of preferences; what becomes of those too long for the reward model says reward.overlong."""
    limit, overlong = config.reward_max_length, config.reward.overlong

    def encode(row: Preference) -> PreferenceExample:
        cut = limit if overlong == "cut" else None
        found = encode_preference(row, tokenizer, cut=cut, reading=config.data.reading)
        if overlong == "refuse":
            key = "model.max_length" if config.reward.max_length is None else "reward.max_length"
            _check_length(found.longest, limit, "a response with its prompt", key)
        if overlong == "cut":
            _demand_difference(row, found, limit)
        return found

    texts = [(row.prompt, [response.text for response in row.responses]) for row in rows]
    _tell_control_strings(texts, tokenizer, config, "the preferences")
    encoded = _encode_all(rows, encode, config, bad, "the preferences")
    kept = [example for example in encoded if example.longest <= limit]
    if overlong == "drop" and len(kept) < len(encoded):
        told = (
            f"{len(encoded) - len(kept)} of {len(encoded)} preferences have more than {limit} tokens and are left out"
        )
        print(f"rayrlhf: {told} (reward.overlong=drop).", file=sys.stderr)
    if overlong == "cut" and (cut := sum(max(example.lengths) > limit for example in kept)):
        told = f"{cut} of {len(kept)} preferences have a response cut at {limit} tokens"
        print(f"rayrlhf: {told} (reward.overlong=cut).", file=sys.stderr)
    return kept


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


def tokenize_prompts(
    rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase, config: RunConfig, bad: BadRows | None = None
) -> list[Prompt]:
    """Prompts with ids; one longer than data.max_prompt_tokens is a bad row. Ids are stable for the same rows."""

    numbered = {id(row): number for number, row in enumerate(rows)}

    def encode(row: PromptRow) -> Prompt:
        ids = encode_prompt(tokenizer, row.prompt, reading=config.data.reading)
        if not len(ids):
            raise UnusableRowError("the prompt has no tokens")
        _check_length(len(ids), config.data.max_prompt_tokens, "the prompt", "data.max_prompt_tokens")
        return Prompt(prompt_id=numbered[id(row)], text=prompt_as_text(row.prompt), token_ids=ids)

    _tell_control_strings([(row.prompt, []) for row in rows], tokenizer, config, "the prompts")
    return _encode_all(rows, encode, config, bad, "the prompts")


def tokenize_both(
    tokenize: Tokenize[Row, Record],
    split: Split[Row],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    *,
    reader: str | None = None,
) -> Split[Record]:
    """Both parts of a source; how many rows may be bad is a share of the whole. `reader` names whose tokenizer it is, where
    there are several."""
    total = len(split.train) + len(split.heldout)
    what = "the training and held-out rows" + (f", as {reader} reads them," if reader is not None else "")
    bad = BadRows(what=what, allowed=config.data.max_bad_rows, total=total)
    train, heldout = (tokenize(rows, tokenizer, config, bad) for rows in (split.train, split.heldout))
    bad.tell()
    return Split(train=train, heldout=heldout, told=split.told)


def usable_rows(rows: Sequence[Row], encode: Callable[[Row], Record], bad: BadRows) -> list[tuple[Row, Record]]:
    """The rows that can be encoded, with what each became; the others are in the account `bad`."""
    usable = []
    for number, row in enumerate(rows):
        try:
            usable.append((row, encode(row)))
        except UnusableRowError as reason:
            bad.add(row.origin or f"row {number}", str(reason))
    return usable


def _encode_all(
    rows: Sequence[Row], encode: Callable[[Row], Record], config: RunConfig, bad: BadRows | None, what: str
) -> list[Record]:
    account = bad or BadRows(what=what, allowed=config.data.max_bad_rows, total=len(rows))
    encoded = [record for _, record in usable_rows(rows, encode, account)]
    if bad is None:
        account.tell()
    return encoded


def _tell_control_strings(
    texts: Sequence[tuple[PromptText, Sequence[str]]],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    what: str,
) -> None:
    counted = ControlStrings(what=what, rows=len(texts))
    for prompt, responses in texts:
        counted.add(control_strings_in(tokenizer, prompt, responses))
    told = counted.told(config.data.special_tokens_in_text)
    if told is not None:
        print(f"rayrlhf: {told}", file=sys.stderr)


def _check_length(tokens: int, limit: int, what: str, key: str) -> None:
    if tokens > limit:
        raise UnusableRowError(f"{what} has {tokens} tokens and {key} is {limit}")


def _demand_difference(row: Preference, found: PreferenceExample, limit: int) -> None:
    """UnusableRowError where a better and a worse response are the same tokens once they are cut."""
    for better, worse in row.strict_pairs():
        if np.array_equal(found.sequences[better], found.sequences[worse]):
            raise UnusableRowError(f"cut at {limit} tokens a better and a worse response are the same")
