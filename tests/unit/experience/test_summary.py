import dataclasses

import numpy as np
import pytest

from rayrlhf.experience.summary import distinct_n, evaluation_metrics, repeated_share, response_kl, sample_rows
from rayrlhf.telemetry.metrics import check_names
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory, VersionSpan


def scored(prompt: str, response: str, *, score: float, gold: float | None, cut: bool = False) -> ScoredTrajectory:
    trajectory = Trajectory(
        sample_id=SampleId("eval", 0, len(prompt), 0),
        prompt_ids=np.array([5], dtype=np.int32),
        response_ids=np.array([1, 2, 3], dtype=np.int32),
        rollout_logprobs=np.array([-1.0, -2.0, -0.5], dtype=np.float32),
        finish="length" if cut else "eos",
        version_spans=(VersionSpan(version=4, start=0, end=2), VersionSpan(version=5, start=2, end=3)),
    )
    ref = np.array([-1.5, -2.0, -1.5], dtype=np.float32)
    return ScoredTrajectory(
        trajectory=trajectory, score=score, ref_logprobs=ref, prompt_text=prompt, response_text=response, gold=gold
    )


def test_evaluation_figures_are_the_means_worked_by_hand() -> None:
    items = [scored("a", "x y x y", score=1.0, gold=0.5), scored("bb", "x y", score=3.0, gold=1.0, cut=True)]
    metrics = evaluation_metrics(items)
    assert metrics["eval/score"] == 2.0
    assert metrics["eval/gold"] == 0.75
    assert metrics["eval/kl"] == pytest.approx(1.5)
    assert metrics["eval/truncated"] == 0.5
    assert metrics["eval/distinct_2"] == pytest.approx(2 / 4)
    assert response_kl(items[0]) == pytest.approx(1.5)


def test_without_gold_there_is_no_gold_figure() -> None:
    assert "eval/gold" not in evaluation_metrics([scored("a", "x", score=1.0, gold=None)])


def test_rows_carry_the_oldest_version_and_the_texts() -> None:
    (row,) = sample_rows("ppo", 7, [scored("p", "r", score=1.0, gold=None)])
    assert (row["step"], row["policy_version"], row["prompt"], row["response"]) == (7, 4, "p", "r")
    assert row["sample_id"] == "eval-0-1-0"


def test_repetition_counts_other_prompts_only() -> None:
    assert repeated_share([("a", "x"), ("a", "x"), ("b", "x"), ("c", "y")]) == 0.25
    assert distinct_n(["one"], 2) == 0.0


def test_the_pass_rate_of_an_evaluation_has_its_number_and_its_interval() -> None:
    """81 of 263: Newcombe 1998, table I, method 3."""
    items = [scored("x" * i, "y", score=float(i < 81), gold=None) for i in range(263)]
    metrics = evaluation_metrics(items)
    check_names(metrics)
    assert metrics["eval/pass_rate"] == pytest.approx(81 / 263)
    assert metrics["eval/pass_n"] == 263.0
    assert (metrics["eval/pass_rate_low"], metrics["eval/pass_rate_high"]) == pytest.approx((0.2553, 0.3662), abs=5e-4)


def test_scores_that_are_no_verdicts_have_no_pass_rate() -> None:
    assert "eval/pass_rate" not in evaluation_metrics([scored("a", "x", score=0.5, gold=None)])
    weighted = dataclasses.replace(scored("a", "x", score=0.5, gold=None), terms={"verify": 1.0})
    assert evaluation_metrics([weighted])["eval/pass_rate"] == 1.0
