"""What was read and encoded once is found again, and is what reading and encoding give."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_lab import config

from rayrlhf.config import RunConfig
from rayrlhf.data import cache, encoded, text_codecs
from rayrlhf.data.cache import in_processes
from rayrlhf.data.dataset import load_demonstrations, load_preferences, load_prompts
from rayrlhf.data.encoded import (
    encoded_demonstrations,
    encoded_preferences,
    encoded_prompts,
    settled,
    tokenizer_digest,
)
from rayrlhf.data.encoding import demonstration_encoder, encode_rows, preference_encoder, prompt_encoder
from rayrlhf.data.prepared import open_demonstrations, open_preferences, open_prompts
from rayrlhf.data.schema import Demonstration
from rayrlhf.data.tokenizer import load_tokenizer, train_tokenizer
from rayrlhf.errors import DataError, DeadlineError, StorageError, WorkerError

SOURCES: dict[str, dict[str, Any]] = {
    "demonstrations": {"path": "d.jsonl", "format": "demonstrations"},
    "preferences": {"path": "p.jsonl", "format": "preferences"},
    "prompts": {"path": "q.jsonl", "format": "prompts"},
}
OPENED: dict[str, tuple[Callable[..., Any], ...]] = {
    "demonstrations": (load_demonstrations, open_demonstrations, encoded_demonstrations, demonstration_encoder),
    "preferences": (load_preferences, open_preferences, encoded_preferences, preference_encoder),
    "prompts": (load_prompts, open_prompts, encoded_prompts, prompt_encoder),
}
TURNS = "{% for m in messages %}<|t|>{{ m.role }} {{ m.content }}<|e|>{% endfor %}{% if add_generation_prompt %}<|t|>{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["one two three four"], vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|t|>", "<|e|>"]})
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(directory)
    return str(directory)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Text and conversations, pairs and rankings, a row that is bad and one that is too long for the model."""
    turns = [{"role": "user", "content": "two <|e|>", "name": "é"}]
    write(
        tmp_path / "d.jsonl",
        [{"prompt": turns if i % 3 else f"one {i}", "response": f"three {i}"} for i in range(60)]
        + [{"prompt": "four", "response": "four " * 200}, {"prompt": "bad"}],
    )
    write(
        tmp_path / "p.jsonl",
        [{"prompt": f"one {i}", "chosen": f"two {i}", "rejected": "three", "margin": i / 3} for i in range(40)]
        + [{"prompt": f"four {i}", "responses": ["a", "b", "c"], "ratings": [1, 2, i]} for i in range(20)]
        + [{"prompt": "long", "chosen": "four " * 200, "rejected": "three"}, {"prompt": "bad"}],
    )
    write(
        tmp_path / "q.jsonl",
        [{"prompt": f"one {i}", "reference": "two", **({"rewards": ["chrf"]} if i % 2 else {})} for i in range(60)]
        + [{"prompt": "four " * 200}, {"prompt": 7}],
    )
    return tmp_path


def settings(root: Path, *overrides: str) -> RunConfig:
    rewards = 'ppo.rewards=[{"kind": "metric", "name": "chrf"}]'
    return config(root, "data.max_bad_rows=0.1", rewards, *overrides, **SOURCES)


def same(first: Any, second: Any) -> bool:
    """Whether two records are alike, types of arrays and NaN included."""
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if hasattr(first, "__dataclass_fields__"):
        return type(first) is type(second) and all(same(getattr(first, n), getattr(second, n)) for n in vars(first))
    return bool(first == second or (first != first and second != second)) and type(first) is type(second)


@pytest.mark.parametrize(
    ("name", "processes"), [*((name, False) for name in OPENED), ("preferences", True)], ids=[*OPENED, "in processes"]
)
def test_rows_from_disk_are_those_of_the_files_and_are_told_alike_every_time(
    root: Path, model: str, name: str, processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = settings(root, "reward.max_length=40", "reward.overlong=drop")
    load, open_, encode, encoder = OPENED[name]
    direct, tokenizer = load(loaded), load_tokenizer(model)
    wanted = [encode_rows(rows, encoder(tokenizer, loaded), tokenizer) for rows in (direct.train, direct.heldout)]
    told = settled([(str(number), account) for number, (_, account) in enumerate(wanted)], loaded)
    if processes:
        monkeypatch.setattr(encoded, "_CHUNK", 17)
    for _ in range(2):
        found, source = encode(loaded, model), open_(loaded)
        assert list(source.train) == direct.train
        assert list(source.heldout) == direct.heldout
        assert (source.told, source.bad) == (direct.told, direct.bad)
        assert direct.bad[0].startswith("1 of 62 rows of")
        for own, (records, _) in zip((found.train, found.heldout), wanted, strict=True):
            assert all(same(a, b) for a, b in zip(own, records, strict=True))
        assert list(found.told) == told
        assert len(told) >= 1
        monkeypatch.setattr(encoded, "_encode", None)  # nothing is encoded again
    assert len(entries(root)) == 2


def test_columns_are_those_of_the_rows(root: Path, model: str) -> None:
    rows = encoded_preferences(settings(root, "reward.overlong=drop"), model).train
    for part in (rows, rows.pick(np.array([3, 3, 1, 40])), rows[5:9], rows.loaded()):
        assert part.column("longest").tolist() == [row.longest for row in part]
        assert part.column("sequences_of").tolist() == [len(row.sequences) for row in part]
        for ranks, row in zip(part.column("ranks").tolist(), part, strict=True):
            assert tuple(ranks) == (*row.ranks, -1)[: len(ranks)]
    with pytest.raises(IndexError):
        rows[len(rows)]
    assert same(rows[-1], rows[len(rows) - 1])


def entries(root: Path) -> set[str]:
    return {path.name for path in (root / "cache").iterdir()}


def test_what_the_records_depend_on_makes_another_entry_and_nothing_else_does(root: Path, model: str) -> None:
    encoded_preferences(settings(root, "reward.overlong=drop"), model)
    first = entries(root)
    shutil.copytree(model, root / "model")
    shutil.copytree(root, elsewhere := root / "elsewhere", ignore=shutil.ignore_patterns("cache", "elsewhere"))
    cached = f"data.cache={root}/cache"
    encoded_preferences(settings(elsewhere, cached, "reward.overlong=drop", "ppo.updates=7"), str(root / "model"))
    assert entries(root) == first
    (root / "model" / "chat_template.jinja").write_text(TURNS + " ")
    changes: list[tuple[RunConfig, str, int]] = [
        (settings(root, "reward.overlong=drop"), str(root / "model"), 1),
        (settings(root, "reward.overlong=drop", "reward.max_length=50"), model, 1),
        (settings(root, "reward.overlong=drop", "data.roles=merge"), model, 1),
        (settings(root, "reward.overlong=drop", "seed=1"), model, 2),
        (settings(root, "reward.overlong=drop", "reward.loss.kind=regression"), model, 2),
    ]
    for changed, tokenizer_dir, more in changes:
        before = len(entries(root))
        encoded_preferences(changed, tokenizer_dir)
        assert len(entries(root)) == before + more
    before = len(entries(root))
    write(root / "p.jsonl", [{"prompt": f"one {i}", "chosen": "two", "rejected": "three"} for i in range(40)])
    assert len(open_preferences(settings(root)).train) < 40
    assert len(entries(root)) == before + 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "no facts", "torn facts"])
def test_a_damaged_entry_is_made_again(root: Path, damage: str) -> None:
    source = open_demonstrations(settings(root))
    rows = list(source.train)
    file = source.folder / ("train.arrow" if damage in ("truncated", "missing") else "facts.json")
    if damage in ("missing", "no facts"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    again = open_demonstrations(settings(root))
    assert list(again.train) == rows
    assert again.folder == source.folder
    assert len(entries(root)) == 1


def test_several_that_make_the_same_at_once_leave_one_entry(root: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: list(open_prompts(settings(root)).train), range(3)))
    assert found[0] == found[1] == found[2]
    assert len(entries(root)) == 1


def test_what_was_left_behind_is_swept_away(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = root / "cache" / ".making-old"
    left.mkdir(parents=True)
    open_prompts(settings(root))
    assert left.exists()
    monkeypatch.setattr(cache, "_ABANDONED", -1.0)
    open_prompts(settings(root, "seed=1"))
    assert not left.exists()


def test_a_disk_that_takes_nothing_ends_in_one_sentence(root: Path) -> None:
    (root / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"cache cannot be written: .*; make its folder writable"):
        open_prompts(settings(root))
    with pytest.raises(
        StorageError, match=r"/dev/full cannot be written: No space left on device; make room on its disk"
    ):
        text_codecs.demonstrations.write(Path("/dev/full"), [Demonstration(prompt="a", response="b" * 100_000)])


def test_what_a_process_finds_wrong_is_raised_as_it_is(root: Path) -> None:
    (root / "q.jsonl").write_text("torn")
    with pytest.raises(DataError, match=r"^q\.jsonl:1 is not valid JSON"):
        open_prompts(settings(root))
    assert entries(root) == set()


def _exit(status: int) -> None:
    import os

    os._exit(status)


def test_a_process_that_dies_or_hangs_is_told() -> None:
    import time

    with pytest.raises(WorkerError, match="A process died in reading: most likely the machine's memory was full"):
        in_processes(_exit, [9], what="reading", processes=1, timeout=60.0)
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"reading took longer than data\.prepare_timeout=3 s"):
        in_processes(time.sleep, [60.0], what="reading", processes=1, timeout=3.0)
    assert time.monotonic() - begun < 20.0


def test_a_tokenizer_is_known_by_its_content(model: str, tmp_path: Path) -> None:
    load_tokenizer(model).save_pretrained(tmp_path)
    assert tokenizer_digest(str(tmp_path)) == tokenizer_digest(model)
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["five"])
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(str(tmp_path)) != tokenizer_digest(model)
