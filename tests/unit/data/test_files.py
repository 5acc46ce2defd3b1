"""Files as people have them: marks, cases, names, patterns, folders, long cells, deep nesting."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from rayrlhf.config import DataConfig, SourceConfig
from rayrlhf.data.dataset import read_preferences
from rayrlhf.data.sources import load_rows
from rayrlhf.errors import DataError

ROWS = [{"prompt": f"q{i}", "chosen": "Yes", "rejected": "No"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def prompts(root: Path, path: str, **source: Any) -> list[str]:
    settings = SourceConfig(path=path, format="preferences", **source)
    return sorted(str(row.prompt) for row in read_preferences(settings, DataConfig(root=str(root)), seed=0))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("marked.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("marked.csv", b"\xef\xbb\xbfprompt,chosen,rejected\nq0,Yes,No\nq1,Yes,No\nq2,Yes,No\nq3,Yes,No\n"),
        ("LOUD.JSONL", LINES.encode()),
        ("lines.json", LINES.encode()),
        ("list.json", json.dumps(ROWS).encode()),
    ],
)
def test_marks_cases_and_names_make_no_difference(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert prompts(tmp_path, name) == ["q0", "q1", "q2", "q3"]


def test_patterns_and_folders_are_all_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for i, row in enumerate(ROWS):
        (folder / f"part-{i}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "README.md").write_text("not data")
    assert prompts(tmp_path, "parts") == prompts(tmp_path, "parts/part-*.jsonl") == ["q0", "q1", "q2", "q3"]
    assert prompts(tmp_path, str(folder / "part-[01].jsonl")) == ["q0", "q1"]
    origins = [row.origin for row in load_rows(SourceConfig(path="parts", format="preferences"), root=str(tmp_path))]
    assert origins[:2] == ["part-0.jsonl:1", "part-1.jsonl:1"]
    with pytest.raises(DataError, match=r"none-\*\.jsonl has no data file"):
        prompts(tmp_path, "none-*.jsonl")
    (folder / "more.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(DataError, match=r"holds files of 2 kinds \(\.csv, \.jsonl\): name those that are meant"):
        prompts(tmp_path, "parts")


def test_a_long_cell_is_read_and_deep_nesting_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f"prompt,chosen,rejected\nq0,{'word ' * 40_000},No\n")
    assert prompts(tmp_path, "long.csv") == ["q0"]
    deep = '{"prompt": "q9", "chosen": "Yes", "rejected": "No", "more": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
    (tmp_path / "deep.jsonl").write_text(LINES + deep)
    with pytest.raises(DataError, match=r"1 of 5 rows of deep\.jsonl cannot be used: deep\.jsonl:5: it is nested too"):
        prompts(tmp_path, "deep.jsonl")


def test_columns_of_parquet_files_with_nothing_in_them_are_absent(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q0", "chosen": "Yes", "rejected": "No", "margin": float("nan"), "weight": None},
        {"prompt": "q1", "chosen": "Yes", "rejected": "No", "margin": 2.0, "weight": 0.5},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "p.parquet"))
    source = SourceConfig(path="p.parquet", format="preferences")
    found = {row.prompt: row for row in read_preferences(source, DataConfig(root=str(tmp_path)), seed=0)}
    assert (found["q0"].margin, found["q0"].weight) == (0.0, 1.0)
    assert (found["q1"].margin, found["q1"].weight) == (2.0, 0.5)


def test_a_hub_data_set_is_asked_for_by_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(path: str, **given: Any) -> list[dict[str, Any]]:
        asked.update(given, path=path)
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    named = {"config_name": "preference", "data_dir": "harmless", "revision": "v2", "split": "test"}
    assert len(prompts(tmp_path, "owner/set", **named)) == 4
    assert asked == {
        "path": "owner/set",
        "split": "test",
        "name": "preference",
        "data_dir": "harmless",
        "revision": "v2",
    }
