"""Every file format and row form, and every way in which a row can be bad."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_lab import QUICKSTART, config, tokenize_demonstrations, tokenize_preferences, tokenize_prompts

from rayrlhf.config import load_config
from rayrlhf.data.dataset import (
    load_demonstrations,
    load_preferences,
    load_prompts,
    task_best_gold,
    task_gold,
)
from rayrlhf.data.prepared import tokenizer_texts
from rayrlhf.data.schema import Demonstration, PromptRow, pair
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import ConfigError, DataError

ROWS = [{"prompt": f"Question {i}?", "response": f" Answer {i}."} for i in range(40)]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": lambda path: write_jsonl(path, ROWS),
    "rows.jsonl.gz": lambda path: write_jsonl(path, ROWS),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.csv": lambda path: write_csv(path, ","),
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    split = load_demonstrations(config(tmp_path, demonstrations={"path": name, "format": "demonstrations"}))
    read = {(row.prompt, row.response) for row in split.train + split.heldout}
    assert read == {(row["prompt"], row["response"]) for row in ROWS}
    assert 0 < len(split.heldout) < len(split.train)


def test_prompts_are_distinct_and_split_by_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"Question {i % 30}?"} for i in range(90)])
    split = load_prompts(config(tmp_path, prompts={"path": "p.jsonl", "format": "prompts"}))
    texts = [row.prompt for row in split.train + split.heldout]
    assert sorted(map(str, texts)) == sorted(f"Question {i}?" for i in range(30))


SPOKEN = [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q?", "chosen": " yes", "rejected": " no"}, ("Q?", " yes", " no")),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
                "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad",
            },
            ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " good", " bad"),
        ),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z",
            },
            ("\n\nHuman: a\n\nAssistant:", " b\n\nHuman: c\n\nAssistant: d", " x\n\nHuman: y\n\nAssistant: z"),
        ),
        (
            {
                "prompt": SPOKEN,
                "chosen": [{"role": "assistant", "content": "Hi"}],
                "rejected": [{"role": "assistant", "content": "Go"}],
            },
            (SPOKEN, "Hi", "Go"),
        ),
        (
            {
                "chosen": [*SPOKEN, {"role": "assistant", "content": "Hi"}],
                "rejected": [*SPOKEN, {"role": "assistant", "content": "Go"}],
            },
            (SPOKEN, "Hi", "Go"),
        ),
    ],
    ids=["explicit", "dialogue", "dialogues that part early", "messages", "implicit messages"],
)
def test_every_form_of_a_preference(tmp_path: Path, row: dict[str, Any], expected: tuple[Any, str, str]) -> None:
    write_jsonl(tmp_path / "p.jsonl", [row] * 2)
    split = load_preferences(config(tmp_path, preferences={"path": "p.jsonl", "format": "preferences"}))
    (found, _) = split.train + split.heldout
    assert (found.prompt, found.chosen, found.rejected) == expected


def test_demonstrations_as_messages(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", [{"messages": [*SPOKEN, {"role": "assistant", "content": "Hi"}]}] * 2)
    split = load_demonstrations(config(tmp_path, demonstrations={"path": "d.jsonl", "format": "demonstrations"}))
    (found, _) = split.train + split.heldout
    assert (found.prompt, found.response) == (SPOKEN, "Hi")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"response": "x"}, "the field prompt is missing"),
        ({"prompt": "Q?"}, "the field response is missing"),
        ({"prompt": "Q?", "response": "  "}, "the field response is empty"),
        ({"prompt": "Q?", "response": 7}, "the field response is int, not text"),
        ({"prompt": [{"role": "user"}], "response": "x"}, "a message without role and content"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must end with an assistant message"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    write_jsonl(tmp_path / "d.jsonl", [*ROWS[:4], bad, *ROWS[4:]])
    source = {"path": "d.jsonl", "format": "demonstrations"}
    with pytest.raises(DataError, match=rf"1 of 41 rows of d\.jsonl cannot be used: d\.jsonl:5: .*{reason}"):
        load_demonstrations(config(tmp_path, demonstrations=source))


def test_a_few_bad_rows_are_reported_and_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", [*ROWS, {"prompt": "Q?"}])
    split = load_demonstrations(
        config(tmp_path, "data.max_bad_rows=0.05", demonstrations={"path": "d.jsonl", "format": "demonstrations"})
    )
    assert len(split.train) + len(split.heldout) == len(ROWS)
    assert split.bad == ("1 of 41 rows of d.jsonl cannot be used: d.jsonl:41: the field response is missing.",)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("torn.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": "c', r"torn\.jsonl:2 is not valid JSON"),
        ("list.jsonl", "[1, 2]\n", r"list\.jsonl:1 is not a JSON object"),
        ("torn.json", "[{", r"torn\.json is not valid JSON"),
        ("number.json", "7", r"number\.json must hold a list of objects"),
        ("ragged.tsv", "prompt\tresponse\na\tb\tc\n", r"ragged\.tsv:2 has 3 fields where 2 are named"),
        ("empty.jsonl", "", r"empty\.jsonl holds no rows"),
        ("fake.jsonl.gz", "not gzip", r"fake\.jsonl\.gz cannot be read"),
        ("fake.parquet", "not parquet", r"fake\.parquet is not a readable Parquet file"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence):
        load_demonstrations(config(tmp_path, demonstrations={"path": name, "format": "demonstrations"}))


def test_a_missing_file_names_the_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl does not exist .data\.root is"):
        load_demonstrations(config(tmp_path, demonstrations={"path": "absent.jsonl", "format": "demonstrations"}))
    with pytest.raises(DataError, match=r"neither a data file .* nor a data set"):
        load_demonstrations(config(tmp_path, demonstrations={"path": "some/absent_set", "format": "demonstrations"}))


LABELLED = {"path": "s.tsv", "format": "labelled", "columns": ["text", "label"], "opening_words": 2}


def write_labelled(path: Path, count: int = 60) -> None:
    words = ["good", "bad"]
    path.write_text("".join(f"this film {i} is {words[i % 2]}\t{1 - i % 2}\n" for i in range(count)))


def test_labelled_texts_give_openings_pairs_and_prompts(tmp_path: Path) -> None:
    write_labelled(tmp_path / "s.tsv")
    loaded = config(tmp_path, demonstrations=LABELLED, preferences=LABELLED, prompts=LABELLED)
    row = load_demonstrations(loaded).train[0]
    assert row.prompt == "this film"
    assert row.response.startswith(" ")
    pairs = load_preferences(loaded)
    for row in pairs.train + pairs.heldout:
        assert row.prompt == ""
        assert row.chosen.endswith("good")
        assert row.rejected.endswith("bad")
    used = [text for row in pairs.train + pairs.heldout for text in (row.chosen, row.rejected)]
    assert len(used) == len(set(used))
    prompts = load_prompts(loaded)
    assert [p.prompt for p in prompts.train + prompts.heldout] == ["this film"]


def test_slices_of_one_file_are_disjoint_for_all_uses(tmp_path: Path) -> None:
    write_labelled(tmp_path / "s.tsv")

    def texts(start: float, stop: float) -> set[str]:
        source = {**LABELLED, "start": start, "stop": stop}
        split = load_demonstrations(config(tmp_path, demonstrations=source))
        return {f"{row.prompt}{row.response}" for row in split.train + split.heldout}

    first, second = texts(0.0, 0.6), texts(0.6, 1.0)
    assert (len(first), len(second), len(first & second)) == (36, 24, 0)


def test_a_label_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "s.tsv").write_text("a b c d\tmaybe\n")
    with pytest.raises(DataError, match=r"s\.tsv:1: the label label is 'maybe', not 0 or 1"):
        load_demonstrations(config(tmp_path, demonstrations=LABELLED))


def test_rows_too_long_for_the_model_are_bad_rows_and_nothing_is_cut(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([row["response"] for row in ROWS], vocab_size=300)
    loaded = config(tmp_path, prompts={"path": "p", "format": "prompts"})
    long = "word " * 200
    with pytest.raises(DataError, match=r"a\.jsonl:3: prompt and response has \d+ tokens and model.max_length is 96"):
        tokenize_demonstrations([Demonstration(prompt="Q", response=long, origin="a.jsonl:3")], tokenizer, loaded)
    with pytest.raises(DataError, match=r"a\.jsonl:4: the prompt has \d+ tokens and data.max_prompt_tokens is 32"):
        tokenize_prompts([PromptRow(prompt=long, origin="a.jsonl:4")], tokenizer, loaded)
    with pytest.raises(DataError, match=r"a\.jsonl:5: a response with its prompt has \d+ tokens"):
        tokenize_preferences([pair("Q", "a", long, origin="a.jsonl:5")], tokenizer, loaded)


def test_tokens_of_rows(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([row["prompt"] + row["response"] for row in ROWS], vocab_size=300)
    loaded = config(tmp_path, prompts={"path": "p", "format": "prompts"})
    (shown,) = tokenize_demonstrations([Demonstration(prompt="Question 1?", response=" Answer 2.")], tokenizer, loaded)
    assert tokenizer.decode(shown.token_ids[: shown.prompt_length]) == "Question 1?"
    assert tokenizer.decode(shown.token_ids[shown.prompt_length :]) == " Answer 2." + tokenizer.eos_token
    (example,) = tokenize_preferences([pair("", "Yes", "No", probability=0.9)], tokenizer, loaded)
    assert [tokenizer.decode(ids) for ids in example.sequences] == [
        "Yes" + tokenizer.eos_token,
        "No" + tokenizer.eos_token,
    ]
    assert (example.ranks, example.probability) == ((0, 1), 0.9)
    prompts = tokenize_prompts([PromptRow(prompt="Question 1?"), PromptRow(prompt="Question 2?")], tokenizer, loaded)
    assert [p.prompt_id for p in prompts] == [0, 1]
    assert prompts[1].text == "Question 2?"


def test_the_built_in_task_has_a_gold_reward_and_files_have_none(tmp_path: Path) -> None:
    task, files = load_config(QUICKSTART), config(tmp_path, prompts={"path": "p", "format": "prompts"})
    judge = task_gold(task)
    assert judge is not None
    assert judge("Guest: The soup was cold.\nHost:", "Thank you for telling us.") == pytest.approx(0.3)
    assert task_best_gold(task, ["Guest: The soup was cold.\nHost:"]) == pytest.approx(1.0)
    assert task_gold(files) is None
    assert task_best_gold(files, ["x"]) is None
    few = load_config(QUICKSTART, ["data.task.demonstrations=20", f"data.cache={tmp_path}"])
    assert len(list(tokenizer_texts(few))) == 20


def test_parallel_files_are_demonstrations_and_prompts_with_references(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.en.gz", "wt") as english, open(tmp_path / "a.de", "w") as german:
        english.writelines(f"dog {i}\n" for i in range(40))
        german.writelines(f"Hund {i}\n" for i in range(40))
    source = {"path": "a.en.gz", "target": "a.de", "format": "parallel", "template": "{line} ="}
    loaded = config(tmp_path, demonstrations=source, prompts=source)
    shown, prompts = load_demonstrations(loaded), load_prompts(loaded)
    assert {(row.prompt, row.response) for row in shown.train + shown.heldout} == {
        (f"dog {i} =", f"Hund {i}") for i in range(40)
    }
    assert {(row.prompt, row.reference) for row in prompts.heldout} == {
        (row.prompt, row.response) for row in shown.heldout
    }
    with pytest.raises(DataError, match=r"a\.en\.gz has 40 lines and b\.de has 1: they must match"):
        (tmp_path / "b.de").write_text("Hund\n")
        load_prompts(config(tmp_path, prompts=source | {"target": "b.de"}))
    with pytest.raises(ConfigError, match="target belongs to format=parallel"):
        config(tmp_path, prompts={"path": "a.de", "format": "parallel"})


def test_as_preferences_of_parallel_files_each_line_has_the_response_of_one_of_like_length(tmp_path: Path) -> None:
    own = {f"dog {i} =": "Hund" + "!" * (i % 20) + str(i % 3) for i in range(60)}
    (tmp_path / "a.en").write_text("".join(f"dog {i}\n" for i in range(60)))
    (tmp_path / "a.de").write_text("".join(f"{response}\n" for response in own.values()))
    source = {"path": "a.en", "target": "a.de", "format": "parallel", "template": "{line} ="}
    split = load_preferences(config(tmp_path, preferences=source))
    sides = [{row.prompt for row in rows} for rows in (split.train, split.heldout)]
    assert split.heldout
    assert not sides[0] & sides[1]
    for rows in (split.train, split.heldout):
        better = [row.responses[0].text for row in rows]
        worse = [row.responses[1].text for row in rows]
        assert better == [own[str(row.prompt)] for row in rows]
        assert all(good != bad for good, bad in zip(better, worse, strict=True))
        assert sorted(better) == sorted(worse)
        assert max(abs(len(good) - len(bad)) for good, bad in zip(better, worse, strict=True)) <= 8


@pytest.mark.parametrize(("overlong", "lengths"), [("drop", [[4, 2]]), ("cut", [[4, 2], [2, 6]])])
def test_overlong_preferences_are_dropped_or_cut_and_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], overlong: str, lengths: list[list[int]]
) -> None:
    tokenizer = train_tokenizer(["abc"], vocab_size=260)
    loaded = config(
        tmp_path,
        "reward.max_length=6",
        f"reward.overlong={overlong}",
        prompts={"path": "p", "format": "prompts"},
    )
    found = tokenize_preferences([pair("", "axy", "a"), pair("", "a", "axyxyxyxy")], tokenizer, loaded)
    assert [[len(ids) for ids in example.sequences] for example in found] == lengths
    if overlong == "cut":
        assert found[1].sequences[1][-1] != tokenizer.eos_token_id
        assert found[1].lengths == (2, 10)
    assert f"reward.overlong={overlong}" in capfd.readouterr().err
