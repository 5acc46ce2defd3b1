"""Rows that name what they are scored by, as people write them, and those that cannot be used."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_lab import tokenize_prompts

from rayrlhf.config import RunConfig, load_config
from rayrlhf.data.dataset import load_prompts
from rayrlhf.data.schema import PromptRow
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import DataError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
TERMS = "[{kind: function, target: 'a:right', name: math}, {kind: metric, name: chrf}, {kind: model, name: in style}]"


def config(root: Path, name: str = "p.jsonl", *overrides: str, **source: Any) -> RunConfig:
    prompts = json.dumps({"path": name, "format": "prompts", **source})
    given = ["data.task=null", f"data.root={root}", "stages=[ppo]", f"data.prompts={prompts}", f"ppo.rewards={TERMS}"]
    return load_config(QUICKSTART, [*given, "data.heldout_fraction=0.3", *overrides])


def write(root: Path, rows: list[dict[str, Any]]) -> None:
    (root / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(loaded: RunConfig) -> list[PromptRow]:
    split = load_prompts(loaded)
    return sorted([*split.train, *split.heldout], key=lambda row: int(row.origin.rsplit(":", 1)[-1].split()[-1]))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"rewards": None}, None),
        ({"rewards": "math"}, ("math",)),
        ({"rewards": " in style "}, ("in style",)),
        ({"rewards": ["math"]}, ("math",)),
        ({"rewards": ["in style", "math", "math"]}, ("math", "in style")),
    ],
)
def test_a_row_names_its_terms_or_is_scored_by_all(tmp_path: Path, given: dict[str, Any], wanted: Any) -> None:
    write(tmp_path, [{"prompt": "Q?", "reference": "A", **given}])
    (row,) = load(config(tmp_path))
    assert (row.prompt, row.reference, row.rewards) == ("Q?", "A", wanted)
    assert [row.scored_by(name) for name in ("math", "in style")] == [
        wanted is None or name in wanted for name in ("math", "in style")
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("maths", "the field rewards names 'maths', which is none of math, chrf, in style"),
        (["math", "stile"], "the field rewards names 'stile', which is none of"),
        ("math, chrf", "the field rewards names 'math, chrf', which is none of"),
        (["math", ""], "the field rewards names '', which is none of"),
        ([], "the field rewards names nothing"),
        ("", "the field rewards names nothing"),
        ([" "], "the field rewards names nothing"),
        (1, "the field rewards is 1, not a name or a list of names"),
        ([0.5, 0.2], "the field rewards is [0.5, 0.2], not a name or a list of names"),
        ({"math": 1.0}, "the field rewards is {'math': 1.0}, not a name or a list of names"),
        (False, "the field rewards is False, not a name or a list of names"),
    ],
)
def test_what_names_no_term_is_a_bad_row_with_its_line(tmp_path: Path, given: Any, reason: str) -> None:
    rows = [{"prompt": f"Question {i}?", "rewards": "math"} for i in range(20)]
    write(tmp_path, [*rows[:7], {"prompt": "Bad?", "rewards": given}, *rows[7:]])
    with pytest.raises(DataError) as refused:
        load(config(tmp_path))
    assert f"1 of 21 rows of p.jsonl cannot be used: p.jsonl:8: {reason}" in str(refused.value)
    assert len(load(config(tmp_path, "p.jsonl", "data.max_bad_rows=0.1"))) == 20
    assert f"p.jsonl:8: {reason}" in load_prompts(config(tmp_path, "p.jsonl", "data.max_bad_rows=0.1")).bad[0]


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "rewards"], ["One?", "math"], ["Two?", "in style"]])


FILES: dict[str, Callable[[Path], None]] = {
    "p.csv": write_csv,
    "p.tsv": lambda path: path.write_text("prompt\trewards\nOne?\tmath\nTwo?\tin style\n"),
    "p.json": lambda path: path.write_text(
        json.dumps([{"prompt": "One?", "rewards": ["math"]}, {"prompt": "Two?", "rewards": "in style"}])
    ),
    "p.parquet": lambda path: datasets.Dataset.from_list(
        [{"prompt": "One?", "rewards": ["math"]}, {"prompt": "Two?", "rewards": ["in style"]}]
    ).to_parquet(str(path)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_carries_them(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    assert {row.prompt: row.rewards for row in load(config(tmp_path, name))} == {
        "One?": ("math",),
        "Two?": ("in style",),
    }


def test_a_row_of_parquet_that_lacks_them_is_scored_by_all(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "One?", "rewards": ["math"]}, {"prompt": "Two?", "rewards": None}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "p.parquet"))
    assert {row.prompt: row.rewards for row in load(config(tmp_path, "p.parquet"))} == {"One?": ("math",), "Two?": None}


def test_chat_prompts_labelled_texts_and_a_field_of_another_name(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Q?"}]
    write(tmp_path, [{"prompt": chat, "scored by": "math", "rewards": [0.3]}])
    (row,) = load(config(tmp_path, rewards_key="scored by"))
    assert (row.prompt, row.rewards) == (chat, ("math",))
    write(tmp_path, [{"text": "one two three", "label": 1, "rewards": ["chrf"]}])
    (row,) = load(config(tmp_path, format="labelled", opening_words=2))
    assert (row.prompt, row.rewards) == ("one two", ("chrf",))


def test_a_prompt_under_two_tasks_is_two_prompts_and_one_that_occurs_twice_is_one(tmp_path: Path) -> None:
    given: list[Any] = ["math", ["math"], "chrf", ["chrf", "math"], ["math", "chrf"], None, None]
    write(tmp_path, [{"prompt": "Q?", "rewards": rewards} for rewards in given])
    split = load_prompts(config(tmp_path))
    assert [split.train == [], split.heldout == []].count(True) == 1  # one prompt's text is on one side
    found = [row.rewards for row in [*split.train, *split.heldout]]
    assert sorted(found, key=str) == sorted([("math",), ("chrf",), ("math", "chrf"), None], key=str)


def test_the_ids_of_tokenized_prompts_lead_back_to_the_rows_past_bad_ones(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {"prompt": "word " * 80 if i == 3 else f"Question {i}?", "rewards": "math" if i % 2 else "chrf"}
            for i in range(12)
        ],
    )
    loaded = config(tmp_path, "p.jsonl", "data.max_bad_rows=0.5")
    rows = load_prompts(loaded).train
    prompts = tokenize_prompts(rows, train_tokenizer(["Question"], vocab_size=300), loaded)
    for prompt in prompts:
        number = int(prompt.text.removeprefix("Question ").removesuffix("?"))
        assert rows[prompt.prompt_id].rewards == ("math" if number % 2 else "chrf",)
