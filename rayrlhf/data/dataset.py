"""What the stages ask of data: text records split by prompt, and their tokens."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import DataConfig, RunConfig, SourceConfig
from rayrlhf.config.data import SpecialTokensInText
from rayrlhf.data import adapters, arithmetic, innkeeper, preference_forms
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.pair_merging import merge_pairs
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, PromptText, Split, pair
from rayrlhf.data.sources import RawRow, load_rows
from rayrlhf.data.special_tokens import ControlStrings
from rayrlhf.data.tokenizer import control_strings_in, encode_exchange, encode_prompt, prompt_as_text
from rayrlhf.errors import DataError
from rayrlhf.types import Example, PreferenceExample, Prompt

Row = TypeVar("Row", Demonstration, Preference, PromptRow)
Record = TypeVar("Record")


class _Task(NamedTuple):
    build: type[innkeeper.Innkeeper] | type[arithmetic.Arithmetic]
    gold: Callable[[str, str], float]
    """The true reward of (prompt, response)."""
    best_answer: Callable[[str], str]
    """A response to a prompt with the greatest true reward."""


_TASKS = {
    "innkeeper": _Task(innkeeper.Innkeeper, innkeeper.gold, innkeeper.best_answer),
    "arithmetic": _Task(arithmetic.Arithmetic, arithmetic.gold, arithmetic.best_answer),
}


def load_demonstrations(config: RunConfig) -> Split[Demonstration]:
    """Demonstrations for supervised fine-tuning."""
    if config.data.task is not None:
        return _task(config).demonstrations()
    return _load(config, _source(config, "demonstrations"), adapters.demonstration)


def load_preferences(config: RunConfig) -> Split[Preference]:
    """Preferences for the reward model; of labelled texts, positive ones over negative ones; of parallel files, a line's
    own response over another's."""
    if config.data.task is not None:
        return _task(config).preferences()
    source = _source(config, "preferences")
    if source.format == "labelled":
        return _labelled_pairs(config, source)
    if source.format == "parallel":
        split = _load(config, source, adapters.demonstration)
        return Split(train=_mismatched(split.train), heldout=_mismatched(split.heldout))
    return _split(read_preferences(source, config.data, seed=config.seed), config)


def read_preferences(source: SourceConfig, data: DataConfig, *, seed: int) -> list[Preference]:
    """Every usable record of one source of preferences."""
    rows = load_rows(source, root=data.root, seed=seed)
    found = _adapt_all(rows, lambda row: preference_forms.preference(row, source), data, source.path)
    gathered = preference_forms.gather(found)
    return merge_pairs(gathered) if source.merge_pairs else gathered


def load_prompts(config: RunConfig) -> Split[PromptRow]:
    """Prompts for PPO and for evaluation; a prompt that occurs twice, and is scored by the same rewards, is one prompt."""
    if config.data.task is not None:
        return _task(config).prompts()
    terms = [term.called for term in config.ppo.rewards]
    split = _load(config, _source(config, "prompts"), lambda row, source: adapters.prompt_row(row, source, terms=terms))
    return Split(train=_distinct(split.train), heldout=_distinct(split.heldout))


def tokenize_demonstrations(
    rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, config: RunConfig
) -> list[Example]:
    """Token sequences of demonstrations; one longer than model.max_length is a bad row."""

    special = config.data.special_tokens_in_text

    def encode(row: Demonstration) -> Example:
        prompt, (response,) = encode_exchange(tokenizer, row.prompt, [row.response], special=special)
        _check_length(len(prompt) + len(response), config.model.max_length, "prompt and response", "model.max_length")
        return Example(token_ids=np.concatenate([prompt, response]), prompt_length=len(prompt))

    _tell_control_strings([(row.prompt, [row.response]) for row in rows], tokenizer, config, "the demonstrations")
    return _encode_all(rows, encode, config, "the demonstrations")


def tokenize_preferences(
    rows: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, config: RunConfig
) -> list[PreferenceExample]:
    """Token sequences of preferences; what becomes of those too long for the reward model says reward.overlong."""
    limit, overlong = config.reward_max_length, config.reward.overlong

    def encode(row: Preference) -> PreferenceExample:
        cut, special = limit if overlong == "cut" else None, config.data.special_tokens_in_text
        found = encode_preference(row, tokenizer, cut=cut, special=special)
        if overlong == "refuse":
            key = "model.max_length" if config.reward.max_length is None else "reward.max_length"
            _check_length(found.longest, limit, "a response with its prompt", key)
        return found

    texts = [(row.prompt, [response.text for response in row.responses]) for row in rows]
    _tell_control_strings(texts, tokenizer, config, "the preferences")
    encoded = _encode_all(rows, encode, config, "the preferences")
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
    special: SpecialTokensInText = "split",
) -> PreferenceExample:
    """The token sequences of one preference, each prompt and response, at most `cut` tokens of each."""
    texts = [response.text for response in row.responses]
    prompt, responses = encode_exchange(tokenizer, row.prompt, texts, special=special)
    whole = [np.concatenate([prompt, response]) for response in responses]
    return PreferenceExample(
        sequences=tuple(sequence[:cut] for sequence in whole),
        lengths=tuple(len(sequence) for sequence in whole),
        prompt_length=len(prompt),
        ranks=row.ranks,
        ratings=tuple(float("nan") if r.rating is None else r.rating for r in row.responses),
        labels=tuple(float("nan") if r.label is None else float(r.label) for r in row.responses),
        probability=row.probability,
        margin=row.margin,
        weight=row.weight,
    )


def tokenize_prompts(rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[Prompt]:
    """Prompts with ids; one longer than data.max_prompt_tokens is a bad row. Ids are stable for the same rows."""

    numbered = {id(row): number for number, row in enumerate(rows)}

    def encode(row: PromptRow) -> Prompt:
        ids = encode_prompt(tokenizer, row.prompt, special=config.data.special_tokens_in_text)
        if not len(ids):
            raise UnusableRowError("the prompt has no tokens")
        _check_length(len(ids), config.data.max_prompt_tokens, "the prompt", "data.max_prompt_tokens")
        return Prompt(prompt_id=numbered[id(row)], text=prompt_as_text(row.prompt), token_ids=ids)

    _tell_control_strings([(row.prompt, []) for row in rows], tokenizer, config, "the prompts")
    return _encode_all(rows, encode, config, "the prompts")


def tokenizer_texts(config: RunConfig) -> list[str]:
    """The texts a run's own tokenizer is trained on: the training demonstrations, else the training preferences."""
    if config.data.task is not None or config.data.demonstrations is not None:
        demonstrations = load_demonstrations(config).train
        return [_plain(row.prompt) + row.response for row in demonstrations]
    preferences = load_preferences(config).train
    return [_plain(row.prompt) + response.text for row in preferences for response in row.responses]


def task_gold(config: RunConfig) -> Callable[[str, str], float] | None:
    """The built-in task's true reward of (prompt, response); None for data of one's own."""
    return None if config.data.task is None else _TASKS[config.data.task.name].gold


def task_best_gold(config: RunConfig, prompts: Sequence[str]) -> float | None:
    """Mean of the best attainable true reward over `prompts`; None for data of one's own."""
    if config.data.task is None:
        return None
    task = _TASKS[config.data.task.name]
    return float(np.mean([task.gold(prompt, task.best_answer(prompt)) for prompt in prompts]))


def _task(config: RunConfig) -> innkeeper.Innkeeper | arithmetic.Arithmetic:
    assert config.data.task is not None
    build = _TASKS[config.data.task.name].build
    return build(config.data.task, seed=config.seed, heldout_fraction=config.data.heldout_fraction)


def _source(config: RunConfig, name: str) -> SourceConfig:
    source: SourceConfig | None = getattr(config.data, name)
    if source is None:
        raise DataError(f"data.{name} is not configured and this stage needs it.")
    return source


def _load(config: RunConfig, source: SourceConfig, adapt: Callable[[RawRow, SourceConfig], Row]) -> Split[Row]:
    rows = load_rows(source, root=config.data.root, seed=config.seed)
    return _split(_adapt_all(rows, lambda row: adapt(row, source), config.data, source.path), config)


def _adapt_all(rows: Sequence[RawRow], adapt: Callable[[RawRow], Record], data: DataConfig, what: str) -> list[Record]:
    bad = BadRows(what=what, allowed=data.max_bad_rows, total=len(rows))
    adapted = []
    for row in rows:
        try:
            adapted.append(adapt(row))
        except UnusableRowError as reason:
            bad.add(row.origin, str(reason))
    _tell(bad)
    return adapted


def _encode_all(rows: Sequence[Row], encode: Callable[[Row], Record], config: RunConfig, what: str) -> list[Record]:
    bad = BadRows(what=what, allowed=config.data.max_bad_rows, total=len(rows))
    encoded = []
    for number, row in enumerate(rows):
        try:
            encoded.append(encode(row))
        except UnusableRowError as reason:
            bad.add(row.origin or f"row {number}", str(reason))
    _tell(bad)
    return encoded


def _tell(bad: BadRows) -> None:
    told = bad.settle()
    if told is not None:
        print(f"rayrlhf: {told}", file=sys.stderr)


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


def _split(rows: list[Row], config: RunConfig) -> Split[Row]:
    """Held out by a hash of the prompt, so that no prompt is on both sides, whatever else the file holds."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        key = derive_seed(config.seed, "heldout", json.dumps(row.prompt, sort_keys=True) or row.origin)
        (heldout if key < config.data.heldout_fraction * 2**31 else train).append(row)
    return Split(train=train, heldout=heldout)


def _labelled_pairs(config: RunConfig, source: SourceConfig) -> Split[Preference]:
    """Each text is used once: the k-th positive over the k-th negative of a seeded order."""
    rows = load_rows(source, root=config.data.root, seed=config.seed)
    texts = _adapt_all(rows, lambda row: (*adapters.labelled_text(row, source), row.origin), config.data, source.path)
    cut = round(len(texts) * config.data.heldout_fraction)

    def pairs(part: Iterable[tuple[str, bool, str]]) -> list[Preference]:
        positive = [(text, origin) for text, label, origin in part if label]
        negative = [(text, origin) for text, label, origin in part if not label]
        return [
            pair("", good, bad, origin=f"{first} over {second}")
            for (good, first), (bad, second) in zip(positive, negative, strict=False)
        ]

    return Split(train=pairs(texts[cut:]), heldout=pairs(texts[:cut]))


def _mismatched(rows: Sequence[Demonstration]) -> list[Preference]:
    """Two lines with responses of like length serve each other as the worse response, so that length tells nothing."""
    by_length = sorted(rows, key=lambda row: len(row.response))
    twins = zip(by_length[::2], by_length[1::2], strict=False)
    return [
        pair(own.prompt, own.response, other.response, origin=own.origin)
        for first, second in twins
        if first.response != second.response
        for own, other in ((first, second), (second, first))
    ]


def _distinct(rows: Iterable[PromptRow]) -> list[PromptRow]:
    first = {json.dumps([row.prompt, row.rewards], sort_keys=True): row for row in rows}
    return list(first.values())


def _plain(prompt: PromptText) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
