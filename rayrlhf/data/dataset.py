"""From the sources of a configuration to text records, split by prompt."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from rayrlhf.config import DataConfig, RunConfig, SourceConfig
from rayrlhf.data import adapters, arithmetic, innkeeper, preference_forms
from rayrlhf.data.bad_rows import BadRows, tell
from rayrlhf.data.fields import Row, UnusableRowError
from rayrlhf.data.pair_merging import merge_pairs
from rayrlhf.data.ranking import gather
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, Split, pair
from rayrlhf.data.source_report import SourceReport
from rayrlhf.data.sources import load_rows
from rayrlhf.data.splitting import sliced, split_by_prompt
from rayrlhf.data.teaching import teaching
from rayrlhf.errors import DataError

Prompted = TypeVar("Prompted", Demonstration, PromptRow)
Record = TypeVar("Record")
Adapter = Callable[[Row, SourceConfig, str], Record]
"""From a row, its source and its origin to a record."""


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
    return _load(config, source_of(config, "demonstrations"), _demonstration)


def load_preferences(config: RunConfig) -> Split[Preference]:
    """Preferences for the reward model; of labelled texts, positive ones over negative ones; of parallel files, a line's
    own response over another's."""
    loss = config.reward.loss
    if config.data.task is not None or source_of(config, "preferences").format != "preferences":
        split = _made_preferences(config)
        teaching(split.train, loss, what="pairs that are made of texts")
        return split
    source = source_of(config, "preferences")
    records, report = _preferences(source, config.data, seed=config.seed)
    kept, note = teaching(records, loss, what=source.path)
    told = report.told() if note is None else [*report.told(), note]
    return split_by_prompt(kept, config, told=told, bad=report.bad)


def _made_preferences(config: RunConfig) -> Split[Preference]:
    """Pairs of a built-in task, of labelled texts or of parallel files."""
    if config.data.task is not None:
        return _task(config).preferences()
    source = source_of(config, "preferences")
    if source.format == "labelled":
        return _labelled_pairs(config, source)
    split = _load(config, source, _demonstration)
    return Split(train=_mismatched(split.train), heldout=_mismatched(split.heldout), told=split.told, bad=split.bad)


def read_preferences(source: SourceConfig, data: DataConfig, *, seed: int) -> list[Preference]:
    """Every usable record of one source of preferences."""
    return describe_preferences(source, data, seed=seed)[0]


def describe_preferences(source: SourceConfig, data: DataConfig, *, seed: int) -> tuple[list[Preference], list[str]]:
    """`read_preferences`, and in sentences what the source was recognised as and what of it is not used."""
    records, report = _preferences(source, data, seed=seed)
    tell(report.bad)
    return records, report.told()


def _preferences(source: SourceConfig, data: DataConfig, *, seed: int) -> tuple[list[Preference], SourceReport]:
    found, report = _records(source, data, _preference)
    report.refuse_unknown_texts(source)
    gathered = gather(found)
    if source.merge_pairs:
        gathered = merge_pairs(gathered)
    weighing = [record for record in gathered if record.weight > 0]
    if gathered and not weighing:
        raise DataError(
            f"All {len(gathered):,} records of {source.path} have a weight of 0: there is nothing to learn."
        )
    if len(weighing) < len(gathered):
        report.notes.append(f"{len(gathered) - len(weighing):,} records have a weight of 0 and are left out.")
    return sliced(((record.key, record) for record in weighing), source, seed=seed), report


def load_prompts(config: RunConfig) -> Split[PromptRow]:
    """Prompts for PPO and for evaluation; a prompt that occurs twice, and is scored by the same rewards, is one prompt."""
    if config.data.task is not None:
        return _task(config).prompts()
    terms = [term.called for term in config.ppo.rewards]

    def adapt(row: Row, source: SourceConfig, origin: str) -> PromptRow:
        return adapters.prompt_row(row, source, terms=terms, origin=origin)

    split = _load(config, source_of(config, "prompts"), adapt)
    return replace(split, train=_distinct(split.train), heldout=_distinct(split.heldout))


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


def source_of(config: RunConfig, name: str) -> SourceConfig:
    """The source of that name; DataError where none is configured."""
    source: SourceConfig | None = getattr(config.data, name)
    if source is None:
        raise DataError(f"data.{name} is not configured and this stage needs it.")
    return source


def _demonstration(row: Row, source: SourceConfig, origin: str) -> Demonstration:
    return adapters.demonstration(row, source, origin=origin)


def _preference(row: Row, source: SourceConfig, origin: str) -> Preference:
    return preference_forms.preference(row, source, origin=origin)


def _load(config: RunConfig, source: SourceConfig, adapt: Adapter[Prompted]) -> Split[Prompted]:
    records, report = _records(source, config.data, adapt)
    rows = sliced(((_slice_key(record, source), record) for record in records), source, seed=config.seed)
    return split_by_prompt(rows, config, told=report.told(), bad=report.bad)


def _records(source: SourceConfig, data: DataConfig, adapt: Adapter[Record]) -> tuple[list[Record], SourceReport]:
    """The record of every usable row, and the account of the source."""
    rows = load_rows(source, root=data.root)
    bad = BadRows(what=source.path, allowed=data.max_bad_rows, total=len(rows))
    report = SourceReport(path=source.path, rows=len(rows))
    found = []
    for raw in rows:
        row = Row(raw.fields)
        if raw.problem:
            bad.add(raw.origin, raw.problem)
            continue
        try:
            found.append(adapt(row, source, raw.origin))
        except UnusableRowError as reason:
            bad.add(raw.origin, str(reason))
        except RecursionError:
            bad.add(raw.origin, "it is nested too deeply")
        else:
            report.add(row)
    settled = bad.settle()
    report.bad = () if settled is None else (settled,)
    return found, report


def _slice_key(record: Demonstration | PromptRow, source: SourceConfig) -> str:
    """What is cut as one: a prompt; of labelled texts, whose openings recur, the text with its line."""
    return record.origin if source.format == "labelled" else record.key


def _labelled_pairs(config: RunConfig, source: SourceConfig) -> Split[Preference]:
    """Each text is used once: the k-th positive over the k-th negative of a seeded order."""

    def adapt(row: Row, source: SourceConfig, origin: str) -> tuple[str, bool, str]:
        row.form = "texts with a label"
        return (*adapters.labelled_text(row, source), origin)

    records, report = _records(source, config.data, adapt)
    texts = sliced(((origin, (text, label, origin)) for text, label, origin in records), source, seed=config.seed)
    cut = round(len(texts) * config.data.heldout_fraction)

    def pairs(part: Iterable[tuple[str, bool, str]]) -> list[Preference]:
        positive = [(text, origin) for text, label, origin in part if label]
        negative = [(text, origin) for text, label, origin in part if not label]
        return [
            pair("", good, bad, origin=f"{first} over {second}")
            for (good, first), (bad, second) in zip(positive, negative, strict=False)
        ]

    return Split(train=pairs(texts[cut:]), heldout=pairs(texts[:cut]), told=tuple(report.told()), bad=report.bad)


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
