"""The text records of a source, read once in a process of its own and from then on from the disk, one at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from rayrlhf.config import RunConfig
from rayrlhf.data import text_codecs
from rayrlhf.data.cache import cache_folder, digest, entry, in_processes
from rayrlhf.data.dataset import load_demonstrations, load_preferences, load_prompts, source_of
from rayrlhf.data.rows import Codec, Rows
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, PromptText, Split
from rayrlhf.data.sources import content_of

Row = TypeVar("Row", Demonstration, Preference, PromptRow)
Name = Literal["demonstrations", "preferences", "prompts"]
PARTS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class Source(Generic[Row]):
    """A source as it lies on disk."""

    train: Rows[Row]
    heldout: Rows[Row]
    told: tuple[str, ...]
    """What was found in it, in sentences; empty for a built-in task."""
    bad: tuple[str, ...]
    """What of it cannot be used, in sentences."""
    chats: bool
    """Whether any prompt is a conversation."""
    prompted: bool
    """Whether any record to train on has a prompt."""
    key: str
    """Of its content and of all settings that it was read with."""
    folder: Path


class _Kind(NamedTuple):
    load: Callable[[RunConfig], Split[Any]]
    codec: Codec[Any]
    settings: Callable[[RunConfig], Any]
    """What else of a configuration its records depend on."""


_KINDS: dict[Name, _Kind] = {
    "demonstrations": _Kind(load_demonstrations, text_codecs.demonstrations, lambda _: None),
    "preferences": _Kind(load_preferences, text_codecs.preferences, lambda config: config.reward.loss.model_dump()),
    "prompts": _Kind(
        load_prompts, text_codecs.prompt_rows, lambda config: [term.called for term in config.ppo.rewards]
    ),
}


def open_demonstrations(config: RunConfig) -> Source[Demonstration]:
    """`load_demonstrations`, from disk."""
    return open_source(config, "demonstrations")


def open_preferences(config: RunConfig) -> Source[Preference]:
    """`load_preferences`, from disk."""
    return open_source(config, "preferences")


def open_prompts(config: RunConfig) -> Source[PromptRow]:
    """`load_prompts`, from disk."""
    return open_source(config, "prompts")


def tokenizer_texts(config: RunConfig) -> Iterator[str]:
    """The texts a run's own tokenizer is trained on: the training demonstrations, else the training preferences."""
    if config.data.task is not None or config.data.demonstrations is not None:
        yield from (_plain(row.prompt) + row.response for row in open_demonstrations(config).train)
    else:
        for row in open_preferences(config).train:
            yield from (_plain(row.prompt) + response.text for response in row.responses)


def open_source(config: RunConfig, name: Name) -> Source[Any]:
    """A source as it lies on disk, read first where it is not there yet."""
    key = _key(config, name)

    def make(folder: Path) -> dict[str, Any]:
        job = (config, name, folder)
        what, timeout = f"reading data.{name}", config.data.prepare_timeout
        return in_processes(_read, [job], what=what, processes=1, timeout=timeout)[0]

    folder, facts = entry(cache_folder(config), key, make)
    train, heldout = (rows_in(folder, name, part) for part in PARTS)
    return Source(
        train=train,
        heldout=heldout,
        told=tuple(facts["told"]),
        bad=tuple(facts["bad"]),
        chats=facts["chats"],
        prompted=facts["prompted"],
        key=key,
        folder=folder,
    )


def rows_in(folder: Path, name: Name, part: str) -> Rows[Any]:
    """The rows of one part of a source that was read."""
    return _KINDS[name].codec.open([_file(folder, part)])


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.arrow"


def _key(config: RunConfig, name: Name) -> str:
    data = config.data
    if data.task is not None:
        content: Any = data.task.model_dump()
    else:
        source = source_of(config, name)
        content = [source.model_dump(), content_of(source, root=data.root)]
    shared = [config.seed, data.heldout_fraction, data.max_bad_rows]
    return f"{name}-{digest(name, content, shared, _KINDS[name].settings(config))}"


def _read(job: tuple[RunConfig, Name, Path]) -> dict[str, Any]:
    """Write the records of a source; what is known of them as a whole."""
    config, name, folder = job
    kind = _KINDS[name]
    split = kind.load(config)
    for part in PARTS:
        kind.codec.write(_file(folder, part), getattr(split, part))
    return {
        "told": split.told,
        "bad": split.bad,
        "chats": any(isinstance(row.prompt, list) for row in (*split.train, *split.heldout)),
        "prompted": any(row.prompt for row in split.train),
    }


def _plain(prompt: PromptText) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
