"""The data of a run, read once before anything starts: a bad file is known now, and what was found in it is told."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from rayrlhf.config import JudgeReward, MetricReward, RunConfig, Stage
from rayrlhf.config.data import Reading
from rayrlhf.data.bad_rows import BadRows, tell
from rayrlhf.data.encoding import encode_preference
from rayrlhf.data.exchange import encode_exchange, encode_judged, encode_prompt
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.prepared import Name, Source, open_source
from rayrlhf.data.schema import Demonstration, Preference, PromptRow
from rayrlhf.data.tokenizer import exchange_as_text, ids_as_text, load_tokenizer, prompt_as_text
from rayrlhf.errors import DataError, ModelError
from rayrlhf.models.members import model_directories
from rayrlhf.pipelines.model_checks import reward_bases
from rayrlhf.pipelines.prompts import load_prompt_set
from rayrlhf.reward.questions import comparison_question
from rayrlhf.reward.stats import reading_of
from rayrlhf.rollout.chat import question_ids

_SHOWN = 1000
"""Characters of an example in the terminal."""

Record = Demonstration | Preference | PromptRow
SOURCES: dict[Stage, Name] = {"sft": "demonstrations", "reward": "preferences", "ppo": "prompts"}
"""What each stage learns from."""


@dataclass(frozen=True, kw_only=True)
class FoundData:
    """What one stage learns from."""

    rows: int
    """Records it trains on."""
    told: list[str]
    """What was recognised, used, ignored and left out, in sentences; empty for a built-in task."""
    example: str = ""
    """The first training record as its model reads it, special tokens written out."""

    def sentences(self) -> list[str]:
        """What to tell whoever starts the run."""
        return [*self.told, f"for example: {_shortened(self.example)!r}"] if self.told else []


@dataclass(kw_only=True)
class DataCheck:
    """Reads the sources of a run's stages."""

    config: RunConfig
    policy_dir: str | None
    """What PPO starts from; None where the run makes it."""
    found: dict[Stage, FoundData] = field(default_factory=dict)

    def run(self) -> dict[Stage, FoundData]:
        """Every stage's data, in order; DataError for the first that cannot be used."""
        for stage in self.config.stages:
            split = open_source(self.config, SOURCES[stage])
            tell(split.bad)
            if stage == "ppo" and self.policy_dir is not None:
                # Before anything is counted: a row that its tokenizer refuses is why there are too few.
                load_prompt_set(self.config, policy_dir=self.policy_dir)
            self._demand_both_parts(stage, split)
            if stage == "ppo":
                _check_references(self.config, split)
                self._check_readers(split)
                self._check_judges(split)
            self.found[stage] = self._describe(stage, split)
        return self.found

    def _demand_both_parts(self, stage: Stage, split: Source[Any]) -> None:
        if split.train and split.heldout:
            return
        raise DataError(
            f"The stage {stage} has {len(split.train)} rows to train on and {len(split.heldout)} held out; both are needed: "
            f"give more rows, or change data.heldout_fraction={self.config.data.heldout_fraction:g}."
        )

    def _check_judges(self, prompts: Source[PromptRow]) -> None:
        """DataError where too many of the prompts leave a judge no room for responses."""
        for judge in self.config.ppo.judges:
            if judge.path is None:
                continue
            check = partial(_check_room, judge, load_tokenizer(judge.path))
            asked = (row for row in itertools.chain(prompts.train, prompts.heldout) if row.scored_by(judge.called))
            self._check_each(asked, check, f"the prompts, as the judge {judge.path} reads them,")

    def _check_readers(self, prompts: Source[PromptRow]) -> None:
        """DataError where a reward model that is there already cannot read too many of the prompts."""
        if not prompts.chats:
            return
        given = [term.path for term in self.config.ppo.reward_models if term.path is not None]
        for path in [own for directory in given for own in model_directories(directory)]:
            check = partial(_check_reading, load_tokenizer(path), reading_of(path))
            rows = itertools.chain(prompts.train, prompts.heldout)
            self._check_each(rows, check, f"the prompts, as {path} reads them,")

    def _check_each(self, rows: Iterable[PromptRow], check: Callable[[PromptRow], None], what: str) -> None:
        bad = BadRows(what=what, allowed=self.config.data.max_bad_rows)
        for number, row in enumerate(rows):
            bad.total = number + 1
            try:
                check(row)
            except UnusableRowError as reason:
                bad.add(row.origin or f"row {number}", str(reason))
        bad.tell()

    def _describe(self, stage: Stage, split: Source[Any]) -> FoundData:
        if not split.told:
            return FoundData(rows=len(split.train), told=[])
        tokenizers = {path: load_tokenizer(path) for path in self._readers(stage)}
        told = [f"data for {stage}: {split.told[0]}", *split.told[1:]]
        told += [
            _of_plain_prompts(self.config, path)
            for path, tokenizer in tokenizers.items()
            if split.prompted and not split.chats and tokenizer.chat_template is not None
        ]
        example, *others = [self._example(split.train, path, own) for path, own in tokenizers.items() or [("", None)]]
        for path, other in zip([*tokenizers][1:], others, strict=True):
            told.append(f"{path} reads the example below as {_shortened(other)!r}")
        return FoundData(rows=len(split.train), told=told, example=example)

    def _readers(self, stage: Stage) -> list[str]:
        """Whose tokens the stage's records become, where that exists already."""
        if stage == "ppo":
            return [] if self.policy_dir is None else [self.policy_dir]
        if stage == "reward":
            return list(dict.fromkeys(reward_bases(self.config)))
        return [] if self.config.model.path is None else [self.config.model.path]

    def _example(self, rows: Sequence[Record], path: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
        for row in rows[:20]:
            try:
                return _as_text(row) if tokenizer is None else _as_tokens(row, tokenizer, self.config)
            except UnusableRowError:
                continue  # counted when all are encoded
            except ModelError as error:
                raise ModelError(f"{path} cannot read the data: {error}") from error
        return ""


def _check_reading(tokenizer: PreTrainedTokenizerBase, reading: Reading, row: PromptRow) -> None:
    encode_judged(tokenizer, row.prompt, ["a"], reading=reading)


def _check_room(judge: JudgeReward, tokenizer: PreTrainedTokenizerBase, row: PromptRow) -> None:
    question = comparison_question(judge.principles, row.prompt, "", "", judge.verdict)
    tokens = len(question_ids(tokenizer, question))
    if tokens >= judge.max_length:
        raise UnusableRowError(
            f"principles and prompt have {tokens} tokens and max_length={judge.max_length} of the judge leaves no room for "
            f"responses"
        )


def _shortened(example: str) -> str:
    return example if len(example) <= _SHOWN else example[:_SHOWN] + " ..."


def _of_plain_prompts(config: RunConfig, path: str) -> str:
    if config.data.plain_prompts == "chat":
        return f"The prompts are plain text; each is written as a user's turn with the chat template of {path}."
    return (
        f"The prompts are plain text and are read as they stand, without the chat template of {path} "
        f"(data.plain_prompts=chat makes each a user's turn)."
    )


def _as_text(row: Record) -> str:
    if isinstance(row, PromptRow):
        return prompt_as_text(row.prompt)
    return exchange_as_text(row.prompt, row.response if isinstance(row, Demonstration) else row.responses[0].text)


def _as_tokens(row: Record, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> str:
    reading = config.data.reading
    if isinstance(row, PromptRow):
        return ids_as_text(tokenizer, encode_prompt(tokenizer, row.prompt, reading=reading))
    if isinstance(row, Preference):
        return ids_as_text(tokenizer, encode_preference(row, tokenizer, reading=reading).sequences[0])
    prompt, (response,) = encode_exchange(tokenizer, row.prompt, [row.response], reading=reading)
    return ids_as_text(tokenizer, [*prompt, *response])


def _check_references(config: RunConfig, prompts: Source[PromptRow]) -> None:
    metrics = [term for term in config.ppo.rewards if isinstance(term, MetricReward)]
    if not metrics and not config.ppo.watch:
        return

    def without() -> Iterator[PromptRow]:
        return (row for row in itertools.chain(prompts.train, prompts.heldout) if row.reference is None)

    lacking = next(((term, row) for term in metrics for row in without() if row.scored_by(term.called)), None)
    if lacking is not None:
        metric, row = lacking
        key = "a task whose prompts have one" if config.data.prompts is None else _reference_key(config)
        raise DataError(
            f"The reward {metric.name} compares with a reference and {row.origin or 'a prompt'} has none: give {key}."
        )
    unwatched = next(without(), None) if config.ppo.watch else None
    if unwatched is not None:
        key = "a task whose prompts have one" if config.data.prompts is None else _reference_key(config)
        raise DataError(
            f"ppo.watch={config.ppo.watch} compares with a reference and {unwatched.origin or 'a prompt'} has none: give {key}."
        )


def _reference_key(config: RunConfig) -> str:
    assert config.data.prompts is not None
    return f"every prompt the field data.prompts.reference_key={config.data.prompts.reference_key}"
