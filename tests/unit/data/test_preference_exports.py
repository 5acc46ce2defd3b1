"""What is exported is read back as the same preferences, and by the tools whose forms these are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.config import DataConfig, SourceConfig
from rayrlhf.data.dataset import read_preferences
from rayrlhf.data.preference_exports import export_rows, own_row
from rayrlhf.data.schema import Preference, Response, pair

SPOKEN = [{"role": "user", "content": "Tea?"}]
RANKED = Preference(
    prompt="Ale?",
    responses=tuple(Response(text=text) for text in ("a", "b", "c")),
    ranking=((1,), (0, 2)),
    subset="inn",
)
RECORDS = [pair(SPOKEN, "Yes", "No"), pair("Bread?", "Aye", "Nay", subset="food"), RANKED]


def rows(form: Any) -> list[dict[str, Any]]:
    return [row for number, record in enumerate(RECORDS) for row in export_rows(record, form, number=number)]


@pytest.mark.parametrize("form", ["rewardbench", "trl"])
def test_pairs_are_read_back_as_they_were(tmp_path: Path, form: str) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(form)))
    source = SourceConfig(path="p.jsonl", format="preferences")
    found = read_preferences(source, DataConfig(root=str(tmp_path)), seed=0)
    texts = {(str(row.prompt), row.chosen, row.rejected, row.subset) for row in found}
    spoken = [{"role": "user", "content": "{}"}]
    bread, ale = (
        ([{**spoken[0], "content": q}] for q in ("Bread?", "Ale?")) if form == "rewardbench" else ("Bread?", "Ale?")
    )
    assert texts == {
        (str(SPOKEN), "Yes", "No", ""),
        (str(bread), "Aye", "Nay", "food"),
        (str(ale), "b", "a", "inn"),
        (str(ale), "b", "c", "inn"),
    }


def test_best_of_many_has_every_field_of_its_form() -> None:
    assert rows("rewardbench2")[2] == {
        "id": "2",
        "prompt": "Ale?",
        "chosen": ["b"],
        "rejected": ["a", "c"],
        "num_correct": 1,
        "total_completions": 3,
        "subset": "inn",
    }
    tie = Preference(prompt="x", responses=RANKED.responses[:2], ranking=((0, 1),))
    assert list(export_rows(tie, "rewardbench2", number=0)) == []
    assert list(export_rows(tie, "trl", number=0)) == []


def test_the_own_form_loses_nothing(tmp_path: Path) -> None:
    tools = {"role": "tools", "content": json.dumps([{"type": "function", "function": {"name": "serve"}}])}
    rated = Preference(prompt="Rye?", responses=(Response(text=" d", rating=2.5), Response(text="e", rating=1.0)))
    full = pair("Rum?", " No", "Aye", probability=0.7, margin=0.5, weight=2.0, reference="No rum", subset="bar")
    records = [*RECORDS, pair([tools, *SPOKEN], "So", "Not so"), replace(rated, ranking=((0,), (1,))), full]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(own_row(row)) + "\n" for row in records))
    source = SourceConfig(path="p.jsonl", format="preferences")
    found = read_preferences(source, DataConfig(root=str(tmp_path)), seed=0)
    assert {row.key: replace(row, origin="") for row in found} == {row.key: row for row in records}
