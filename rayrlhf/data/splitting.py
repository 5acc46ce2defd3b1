"""Training and held-out parts by prompt, slices by prompt, and what both parts have in common."""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RunConfig, SourceConfig
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, Split

Row = TypeVar("Row", Demonstration, Preference, PromptRow)
Record = TypeVar("Record")

_RANGE = 2.0**31
"""Of derived seeds."""
_EXPECTED = 0.5
_WORDS = 5
_KEPT = 8
"""One in so many shingles is compared: those whose digest this number divides."""
_FEWEST = 3
_OVERLAP = 0.8
_COMMON = 0.01
"""A shingle of more than this share of the prompts is a phrase of the data set's, not of a prompt's."""


def split_by_prompt(
    rows: Sequence[Row], config: RunConfig, *, told: Iterable[str] = (), bad: tuple[str, ...] = ()
) -> Split[Row]:
    """Held out by a hash of the prompt, so that no prompt is on both sides, whatever else the file holds.

    Prompts that differ in case, punctuation and spaces alone are one prompt to it.
    """
    keys = [derive_seed(config.seed, "heldout", normal_form(row.key)) for row in rows]
    fraction, prompts = config.data.heldout_fraction, len(set(keys))
    # Where one of a few prompts is to be expected there, one is held out, whatever the hash says.
    least = min(keys) if prompts > 1 and fraction * prompts >= _EXPECTED else -1
    below = max(fraction * _RANGE, least + 1)
    train = [row for row, key in zip(rows, keys, strict=True) if key >= below]
    heldout = [row for row, key in zip(rows, keys, strict=True) if key < below]
    counts = f"{len(train):,} records are trained on and {len(heldout):,} held out, by prompt."
    found: list[str | None] = [_repeated(rows), _shared(train, heldout)]
    notes = (*told, counts, *(note for note in found if note is not None))
    return Split(train=train, heldout=heldout, told=notes, bad=bad)


def sliced(records: Iterable[tuple[str, Record]], source: SourceConfig, *, seed: int) -> list[Record]:
    """Records with the key of their prompt, in a seeded order of the prompts, cut to the slice [start, stop) and the limit.

    A prompt's place in the order depends on nothing else in the file, so that disjoint slices stay disjoint whatever use
    they are read for. A prompt whose records do not all fit below the limit ends the list.
    """
    by_prompt: dict[str, list[Record]] = {}
    for key, record in records:
        by_prompt.setdefault(key, []).append(record)
    place = {key: derive_seed(seed, "rows", source.path, key) for key in by_prompt}
    chosen = [key for key in by_prompt if source.start <= place[key] / _RANGE < source.stop]
    groups = [by_prompt[key] for key in sorted(chosen, key=place.__getitem__)]
    return [record for group in _limited(groups, source.limit) for record in group]


def _limited(groups: Sequence[list[Record]], limit: int | None) -> Iterator[list[Record]]:
    left = limit
    for number, group in enumerate(groups):
        if left is not None and len(group) > left:
            if number == 0:
                yield group[:left]
            return
        yield group
        left = None if left is None else left - len(group)


def _repeated(rows: Sequence[Row]) -> str | None:
    times = Counter(json.dumps([row.key, _said(row)], sort_keys=True) for row in rows)
    more = sum(count - 1 for count in times.values())
    return f"{more:,} records occur more than once." if more else None


def _said(row: Demonstration | Preference | PromptRow) -> object:
    if isinstance(row, Preference):
        return [[response.text for response in row.responses], row.ranking]
    return row.response if isinstance(row, Demonstration) else row.rewards


def _shared(train: Sequence[Row], heldout: Sequence[Row]) -> str | None:
    """How many held-out prompts consist of what training prompts say, word for word, but for phrases all have."""
    keys = {row.key for row in train}
    times = Counter(shingle for key in keys for shingle in _shingles(key))
    known = {shingle for shingle, count in times.items() if count <= max(1.0, _COMMON * len(keys))}
    common = times.keys() - known
    near = others = 0
    for key in {row.key for row in heldout}:
        own = _shingles(key) - common
        others += 1
        near += len(own) >= _FEWEST and len(own & known) >= _OVERLAP * len(own)
    if not near:
        return None
    return f"{near:,} of {others:,} held-out prompts repeat training prompts nearly word for word: figures on them flatter."


def _shingles(text: str) -> set[int]:
    """Digests of every so many words in a row, a fixed sample of them."""
    words = text.casefold().split()
    digests = (zlib.crc32(" ".join(words[i : i + _WORDS]).encode()) for i in range(len(words) - _WORDS + 1))
    return {digest for digest in digests if digest % _KEPT == 0}


def normal_form(text: str) -> str:
    """A text by its letters and digits alone; one without any as it is."""
    return "".join(sign for sign in text.casefold() if sign.isalnum()) or text
