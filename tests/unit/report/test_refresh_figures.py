"""What is said of the distance from home, and what is not."""

from pathlib import Path
from typing import Any

import pytest

from rayrlhf.files import write_json
from rayrlhf.report.refresh_figures import accuracy_rows, refresh_finding
from rayrlhf.report.write import write_report


def figures(accuracy: float, pairs: int = 100) -> dict[str, Any]:
    return {"pairs": pairs, "accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05}


def found(away: float, *, after: float = 0.8, home: float | None = 0.87, home_after: float = 0.87) -> dict[str, Any]:
    """The last of three bins has no pairs."""
    bins = [(1, 10), (11, 20), (21, 30)]
    at_home = {"before": None if home is None else figures(home), "after": figures(home_after) if home else None}
    return {
        "bins": [{"name": f"updates {a} to {b}", "first": a, "last": b} for a, b in bins],
        "label": "gold",
        "heldout_pairs": 200,
        "before": {"by_update": [figures(0.86), figures(away), None], "on_policy": figures(0.6, 200)}
        | {"home": at_home["before"]},
        "after": {"by_update": [figures(0.8), figures(after), None], "on_policy": figures(after, 200)}
        | {"home": at_home["after"]},
    }


@pytest.mark.parametrize(
    ("away", "tone", "headline"),
    [
        (0.30, "bad", "The reward model is far from home"),
        (0.78, "neutral", "No distance from home is shown"),
        (0.99, "good", "The reward model orders the policy's pairs better than its own"),
    ],
)
def test_the_distance_is_claimed_beyond_the_intervals_alone(away: float, tone: str, headline: str) -> None:
    verdict = refresh_finding(found(away))
    assert (verdict.tone, verdict.headline) == (tone, headline)
    assert f"updates 11 to 20 it ordered {away:.1%}" in verdict.sentence


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"after": 0.8}, "from 60.0% to 80.0%: it helped"),
        ({"after": 0.65}, "from 60.0% to 65.0%: the intervals overlap, no change is shown"),
        ({"after": 0.4}, "from 60.0% to 40.0%: it harmed"),
        ({"home_after": 0.7}, "went from 87.0% to 70.0%: some was forgotten"),
        ({"home_after": 0.85}, "went from 87.0% to 85.0%: the intervals overlap, no change is shown"),
    ],
)
def test_what_the_refresh_did(changes: dict[str, float], told: str) -> None:
    assert told in refresh_finding(found(0.3, **changes)).sentence


def test_without_a_home_nothing_is_compared() -> None:
    verdict = refresh_finding(found(0.3, home=None))
    assert verdict.headline == "There is no home to compare with"
    assert "own held-out" not in verdict.sentence


def test_the_table_has_a_line_for_what_was_judged() -> None:
    lines = accuracy_rows(found(0.3))
    assert [line[0] for line in lines] == [
        "updates 1 to 10",
        "updates 11 to 20",
        "all updates",
        "its own held-out preferences",
    ]
    assert lines[1][1:] == ["100", "30.0% (25.0% to 35.0%)", "80.0% (75.0% to 85.0%)"]


def test_the_report_of_the_run_shows_it(tmp_path: Path) -> None:
    assert "from home" not in write_report(tmp_path).read_text()
    write_json(tmp_path / "refresh.json", found(0.3))
    page = write_report(tmp_path).read_text()
    assert "<h2>How far the reward model is from home</h2>" in page
    assert "The reward model is far from home." in page
    assert "At home is what it was on its own held-out preferences" in page
    assert "200 pairs of the policy" in page
