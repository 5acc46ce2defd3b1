"""The tokens of a source: encoded once by as many processes as there are cores, and from then on read from the disk."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from rayrlhf.config import RunConfig
from rayrlhf.data import token_codecs
from rayrlhf.data.bad_rows import BadRows, tell
from rayrlhf.data.cache import cache_folder, digest, entry, file_digest, in_processes
from rayrlhf.data.encoding import (
    Account,
    Encoder,
    demonstration_encoder,
    encode_rows,
    preference_encoder,
    prompt_encoder,
)
from rayrlhf.data.prepared import PARTS, Name, Source, open_source, rows_in
from rayrlhf.data.rows import Codec, Rows
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import DataError
from rayrlhf.types import Example, PreferenceExample, Prompt

Record = TypeVar("Record")

_CHUNK = 8192
"""Rows that one process encodes at a time. So few are encoded where they are asked for: other processes take longer to start."""


class _Kind(NamedTuple):
    encoder: Callable[[PreTrainedTokenizerBase, RunConfig], Encoder[Any, Any]]
    codec: Codec[Any]
    limits: Callable[[RunConfig], Any]
    """What of a configuration its tokens depend on, beside how text is read."""


_KINDS: dict[Name, _Kind] = {
    "demonstrations": _Kind(demonstration_encoder, token_codecs.examples, lambda config: config.model.max_length),
    "preferences": _Kind(
        preference_encoder,
        token_codecs.preference_examples,
        lambda config: [config.model.max_length, config.reward.max_length, config.reward.overlong],
    ),
    "prompts": _Kind(prompt_encoder, token_codecs.prompts, lambda config: config.data.max_prompt_tokens),
}


class _Job(NamedTuple):
    """Some rows of one part of a source, and the folder for their tokens."""

    config: RunConfig
    name: Name
    tokenizer_dir: str
    source: Path
    folder: Path
    part: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Encoded(Generic[Record]):
    """The tokens of a source as they lie on disk; rows that cannot be encoded are not among them."""

    train: Rows[Record]
    heldout: Rows[Record]
    source: Source[Any]
    told: tuple[str, ...]
    """What was met on the way, in sentences: bad rows, control strings, what is too long."""


def encoded_demonstrations(config: RunConfig, tokenizer_dir: str) -> Encoded[Example]:
    """The demonstrations as the model of a directory reads them."""
    return _encoded(config, "demonstrations", tokenizer_dir)


def encoded_preferences(config: RunConfig, tokenizer_dir: str) -> Encoded[PreferenceExample]:
    """The preferences as the reward model that starts from a directory reads them."""
    return _encoded(config, "preferences", tokenizer_dir)


def encoded_prompts(config: RunConfig, tokenizer_dir: str) -> Encoded[Prompt]:
    """The prompts as the policy of a directory reads them."""
    return _encoded(config, "prompts", tokenizer_dir)


def _encoded(config: RunConfig, name: Name, tokenizer_dir: str) -> Any:
    source, kind = open_source(config, name), _KINDS[name]
    reading = asdict(config.data.reading)
    several = name == "preferences" and len(set(config.reward.bases)) > 1
    reader = tokenizer_dir if several else None
    key = digest(
        source.key, tokenizer_digest(tokenizer_dir), reading, kind.limits(config), config.data.max_bad_rows, reader
    )

    def make(folder: Path) -> dict[str, Any]:
        jobs = [
            _Job(config, name, tokenizer_dir, source.folder, folder, part, start, start + _CHUNK)
            for part in PARTS
            for start in range(0, len(getattr(source, part)), _CHUNK)
        ]
        return {"told": settled(_done(jobs, source), config, reader=reader)}

    folder, facts = entry(cache_folder(config), f"{name}-{key}", make)
    train, heldout = (kind.codec.open(sorted(folder.glob(f"{part}-*.arrow"))) for part in PARTS)
    return Encoded(train=train, heldout=heldout, source=source, told=tuple(facts["told"]))


def tokenizer_digest(directory: str) -> str:
    """Of all that a tokenizer is made of, its chat template too, whatever its directory is called."""
    with tempfile.TemporaryDirectory() as folder:
        load_tokenizer(directory).save_pretrained(folder)
        return digest(
            tokenizers.__version__,
            transformers.__version__,
            [(file.name, file_digest(file)) for file in sorted(Path(folder).iterdir())],
        )


def _done(jobs: list[_Job], source: Source[Any]) -> list[tuple[str, Account]]:
    """The part and the account of every job, in order."""
    if len(source.train) + len(source.heldout) <= _CHUNK:
        return [_encode(job) for job in jobs]
    cores = len(os.sched_getaffinity(0))
    timeout = jobs[0].config.data.prepare_timeout
    return in_processes(_encode, jobs, what=f"encoding data.{jobs[0].name}", processes=cores, timeout=timeout)


def _encode(job: _Job) -> tuple[str, Account]:
    kind, tokenizer = _KINDS[job.name], load_tokenizer(job.tokenizer_dir)
    rows = rows_in(job.source, job.name, job.part)[job.start : job.stop]
    records, account = encode_rows(rows, kind.encoder(tokenizer, job.config), tokenizer, first=job.start)
    kind.codec.write(job.folder / f"{job.part}-{job.start:09d}.arrow", records)
    return job.part, account


def settled(accounts: list[tuple[str, Account]], config: RunConfig, *, reader: str | None = None) -> list[str]:
    """Sentences on both parts, from the account of each or of pieces of it; how many rows may be bad is a share of the whole.

    `reader` names whose tokenizer it is, where there are several.
    """
    by_part: dict[str, Account] = {}
    for part, account in accounts:
        if part in by_part:
            by_part[part].add(account)
        else:
            by_part[part] = account
    told = [sentence for account in by_part.values() for sentence in account.told(config)]
    bad = BadRows(
        what="the training and held-out rows" + ("" if reader is None else f", as {reader} reads them,"),
        allowed=config.data.max_bad_rows,
        total=sum(account.controls.rows for account in by_part.values()),
        reasons=[reason for account in by_part.values() for reason in account.bad],
    )
    try:
        unusable = bad.settle()
    except DataError:
        tell(told)
        raise
    return told if unusable is None else [*told, unusable]
