"""What is said of measures that nobody rewards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrlhf.report.data import read_run
from rayrlhf.report.verdict import Verdict
from rayrlhf.report.watched import watched_findings
from rayrlhf.report.write import write_report
from rayrlhf.telemetry.metrics import METRICS, WATCHED, watch_metric


def run(folder: Path, path: list[tuple[int, float, float]], *, spread: float = 0.02) -> Path:
    """Evaluations at some steps: the score and BLEU of 40 held-out answers, scattered about these means."""
    rng = np.random.default_rng(0)
    scatter = rng.normal(size=(2, 40)) * spread
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for step, score, bleu in path:
        means = {"eval/score": score, "eval/watch_bleu": bleu, "eval/kl": float(step)}
        rows.append({"stage": "ppo", "step": step, "time": float(step), **means})
        samples += [
            {
                "stage": "eval",
                "step": step,
                "sample_id": f"eval-0-{i}-0",
                "prompt": f"p{i}",
                "response": "r",
                "score": score + scatter[0, i],
                "watched": {"bleu": bleu + scatter[1, i]},
            }
            for i in range(40)
        ]
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def finding(folder: Path) -> Verdict:
    (found,) = watched_findings(read_run(folder))
    return found


@pytest.mark.parametrize(
    ("path", "tone", "headline"),
    [
        ([(0, 0.5, 0.30), (10, 0.6, 0.27)], "bad", "Over-optimisation: the score rose and BLEU fell"),
        ([(0, 0.5, 0.27), (10, 0.6, 0.30)], "good", "BLEU rose"),
        ([(0, 0.5, 0.30), (10, 0.5, 0.27)], "bad", "BLEU fell"),
        ([(0, 0.5, 0.30), (10, 0.6, 0.30)], "neutral", "BLEU did not change beyond noise"),
    ],
)
def test_a_measure_goes_with_the_score_or_against_it(
    tmp_path: Path, path: list[tuple[int, float, float]], tone: str, headline: str
) -> None:
    found = finding(run(tmp_path, path))
    assert (found.tone, found.headline) == (tone, headline)
    assert "BLEU, which is not rewarded, went from" in found.sentence
    page = write_report(tmp_path).read_text()
    assert headline in page
    assert "Watched measures" in page


def test_the_exported_policy_is_what_is_spoken_of(tmp_path: Path) -> None:
    run(tmp_path, [(0, 0.5, 0.30), (10, 0.6, 0.32), (20, 0.7, 0.20)])
    (tmp_path / "summary.json").write_text(json.dumps({"stages": {"ppo": {"exported_step": 10}}}))
    assert "went from 30.0 to 32.0" in finding(tmp_path).sentence
    (tmp_path / "summary.json").unlink()
    assert finding(tmp_path).headline.startswith("Over-optimisation")


def test_every_measure_that_may_be_watched_is_declared() -> None:
    from rayrlhf.config.rewards import TextMetric

    assert set(TextMetric.__args__) == set(WATCHED)  # type: ignore[attr-defined]
    assert all(watch_metric(name) in METRICS for name in WATCHED)
