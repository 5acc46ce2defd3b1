"""Every form of preference data, brought to one record."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.config import DataConfig, SourceConfig
from rayrlhf.data.dataset import read_preferences
from rayrlhf.data.ranking import rank_by
from rayrlhf.data.schema import Preference
from rayrlhf.errors import DataError

ASKED = [{"role": "user", "content": "Tea?"}]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(tmp_path: Path, rows: list[dict[str, Any]], **source: Any) -> list[Preference]:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_preferences(
        SourceConfig(path="p.jsonl", format="preferences", **source), DataConfig(root=str(tmp_path)), seed=0
    )
    return sorted(found, key=lambda row: row.origin)


PAIRS: dict[str, dict[str, Any]] = {
    "TRL explicit prompt": {"prompt": "Tea?", "chosen": "Yes", "rejected": "No"},
    "TRL explicit messages": {"prompt": ASKED, "chosen": [said("Yes")], "rejected": [said("No")]},
    "TRL implicit messages": {"chosen": [*ASKED, said("Yes")], "rejected": [*ASKED, said("No")]},
    "TRL implicit text": {"chosen": "Yes", "rejected": "No"},
    "rewardbench messages beside a text prompt": {
        "prompt": "Tea?",
        "chosen": [*ASKED, said("Yes")],
        "rejected": [*ASKED, said("No")],
    },
    "HH dialogue": {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes", "rejected": "\n\nHuman: Tea?\n\nAssistant: No"},
    "NeMo completions": {
        "context": ASKED,
        "completions": [{"rank": 1, "completion": [said("No")]}, {"rank": 0, "completion": [said("Yes")]}],
    },
    "HelpSteer3": {"context": ASKED, "response1": "No", "response2": "Yes", "overall_preference": 2},
    "our own": {"prompt": "Tea?", "responses": [{"content": "No"}, {"content": "Yes"}], "ranking": [[1], [0]]},
    "our own, soft": {"prompt": "Tea?", "responses": ["No", "Yes"], "preference": {"i": 1, "j": 0, "p": 0.8}},
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_form_of_a_pair(tmp_path: Path, name: str) -> None:
    (found,) = read(tmp_path, [PAIRS[name]])
    assert found.is_pair
    assert (found.chosen.strip(), found.rejected.strip()) == ("Yes", "No")
    assert found.origin == "p.jsonl:1"


def test_other_keys_and_what_a_pair_may_carry(tmp_path: Path) -> None:
    row = {
        "q": "Tea?",
        "good": "Yes",
        "bad": "No",
        "sure": 0.7,
        "by": 2,
        "weight": 3,
        "subset": "inn",
        "reference": "Aye",
    }
    keys = {
        "prompt_key": "q",
        "chosen_key": "good",
        "rejected_key": "bad",
        "probability_key": "sure",
        "margin_key": "by",
    }
    (found,) = read(tmp_path, [row], **keys)
    assert (found.prompt, found.chosen, found.rejected) == ("Tea?", "Yes", "No")
    assert (found.probability, found.margin, found.weight) == (0.7, 2.0, 3.0)
    assert (found.subset, found.reference) == ("inn", "Aye")


def test_ratings_of_one_prompt_are_gathered_and_ranked_with_ties(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Tea?", "response": "a", "helpfulness": 3},
        {"prompt": "Ale?", "response": "x", "helpfulness": 1},
        {"prompt": "Tea?", "response": "b", "helpfulness": 4},
        {"prompt": "Tea?", "response": "c", "helpfulness": 3},
    ]
    found = {str(row.prompt): row for row in read(tmp_path, rows)}
    tea = found["Tea?"]
    by_text = dict(zip([r.text for r in tea.responses], tea.ranks, strict=True))
    assert by_text == {"a": 1, "b": 0, "c": 1}
    assert found["Ale?"].responses[0].rating == 1.0
    assert found["Ale?"].ranking == ()


def test_a_rating_may_be_a_weighted_sum(tmp_path: Path) -> None:
    rows = [{"prompt": "Tea?", "response": "a", "helpfulness": 4, "verbosity": 2}]
    (found,) = read(tmp_path, rows, rating_weights={"helpfulness": 0.5, "verbosity": -0.25})
    assert found.responses[0].rating == 1.5


def test_labels_and_lists_of_good_and_bad(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Tea?", "completion": "Yes", "label": True},
        {"prompt": "Tea?", "completion": "No", "label": False},
        {"prompt": "Tea?", "chosen": ["Yes"], "rejected": ["No", "Maybe", "What?"], "subset": "Focus"},
    ]
    good, bad, best = read(tmp_path, rows)
    assert (good.responses[0].label, bad.responses[0].label) == (True, False)
    assert best.ranks == (0, 1, 1, 1)
    assert best.subset == "Focus"


def test_a_tie_keeps_both_texts(tmp_path: Path) -> None:
    (tie,) = read(tmp_path, [{"context": ASKED, "response1": "No", "response2": "Yes", "overall_preference": 0}])
    assert tie.ranking == ((0, 1),)
    assert not tie.is_pair
    assert [r.text for r in tie.responses] == ["No", "Yes"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Tea?"}, "the field response is missing"),
        ({"prompt": "Tea?", "response": "Yes"}, "it holds neither chosen and rejected, nor responses"),
        ({"prompt": "Tea?", "response": "Yes", "rating": "high"}, "the field rating is 'high', not a number"),
        ({"prompt": "Tea?", "completion": "Yes", "label": "good"}, "the label label is 'good', not 0 or 1"),
        ({"prompt": "Tea?", "chosen": "Yes", "rejected": "Yes"}, "chosen and rejected are the same text"),
        ({"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "probability": 1.5}, "not in [0, 1]"),
        ({"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "weight": -1}, "the field weight is -1, below 0"),
        (
            {"prompt": "Tea?", "responses": ["a", "b"], "ranking": [0, 0]},
            "must name each of some of the 2 responses once",
        ),
        ({"prompt": "Tea?", "responses": []}, "it holds no responses"),
        ({"context": ASKED, "completions": ["a"]}, "does not hold objects with rank and completion"),
    ],
)
def test_a_row_that_holds_no_preference_says_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, [row])
    assert "p.jsonl:1: " in str(error.value)
    assert reason in str(error.value)


def test_ranks_put_equal_values_together() -> None:
    assert rank_by([1.0, 3.0, 1.0]) == ((1,), (0, 2))
