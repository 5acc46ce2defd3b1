"""The report of a run with a verifier and a group estimator speaks of these, not of a reward model and an SFT policy."""

from pathlib import Path

import pytest
from report_lab import SILENT
from test_write import page_of

from rayrlhf.report.data import read_run
from rayrlhf.report.verdict import Verdict, judge
from rayrlhf.telemetry.sinks import MetricsWriter
from rayrlhf.telemetry.summary import write_summary

GRPO = """
stages: [ppo]
ppo:
  advantage: grpo
  rewards: [{kind: function, target: "rewards:is_right"}]
"""


def write_run(run_dir: Path, rates: list[float], *, config: str = GRPO, gold: bool = True, prompts: int = 100) -> None:
    """A run whose evaluations, one every ten updates, have these shares of right answers."""
    (run_dir / "config.yaml").write_text(config)
    writer = MetricsWriter(run_dir, SILENT)
    for number, rate in enumerate(rates):
        step = 10 * number
        right = [float(i < rate * prompts) for i in range(prompts)]
        writer.samples(
            [
                {
                    "stage": "eval",
                    "step": step,
                    "sample_id": f"eval-0-{i}-0",
                    "prompt": f"{i}+1=",
                    "response": str(i + 1),
                    "score": value,
                    "gold": value if gold else None,
                    "finish": "stop",
                }
                for i, value in enumerate(right)
            ]
        )
        metrics = {"eval/score": rate, "eval/kl": float(number), "eval/pass_rate": rate, "eval/pass_n": float(prompts)}
        metrics |= {"eval/pass_rate_low": max(0.0, rate - 0.08), "eval/pass_rate_high": min(1.0, rate + 0.08)}
        metrics |= {"eval/gold": rate} if gold else {}
        if step:
            metrics |= {"reward/score": rate, "reward/pass_rate": rate, "reward/pass_at_k": min(1.0, rate + 0.2)}
            metrics |= {"reward/groups_equal": rate / 2, "reward/group_std": 0.4, "kl/behaviour": float(number)}
        writer.log("ppo", step, metrics)
    writer.close()


def verdict_of(run_dir: Path, rates: list[float], **options: bool | str) -> Verdict:
    write_run(run_dir, rates, **options)  # type: ignore[arg-type]
    verdict = judge(read_run(run_dir))
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("gold", [True, False])
def test_the_page_names_what_the_run_has_and_nothing_else(tmp_path: Path, gold: bool) -> None:
    write_run(tmp_path, [0.2, 0.6, 0.9], gold=gold)
    page = page_of(tmp_path)
    assert "GRPO, 20 updates" in page.words
    assert "Right answers, start → GRPO 20% → 90% verifier, 100 held-out answers; 95 % interval 82 to 98%" in page.words
    assert "Before: the starting policy" in page.words
    assert {"Right answers", "Groups"} <= set(page.titles)
    assert "Share of answers that the verifier calls right; update 0 is the starting policy." in page.words
    assert page.words.count("right") > 100
    shown = page.words.split("Every metric, its last value")[0]
    for absent in ("reward model", "Reward model", "reward-model", "SFT", "PPO", "Gold,", "proxy", "score 1.00"):
        assert absent not in shown, absent


def test_more_right_answers_are_a_success_in_itself(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, [0.2, 0.6, 0.9])
    assert (verdict.tone, verdict.headline) == ("good", "Right answers rose from 20% to 90%")
    assert (
        "Of the starting policy's held-out answers 20% were right, of those after 20 updates of GRPO 90% (95 % interval 82 "
        "to 98%) at KL 2.0." in verdict.sentence
    )


def test_solved_groups_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, [0.2, 0.9])
    writer = MetricsWriter(tmp_path, SILENT)
    writer.log("ppo", 11, {"reward/groups_equal": 0.7})
    writer.close()
    verdict = judge(read_run(tmp_path))
    assert verdict is not None
    assert "In 70% of the last groups all answers scored alike" in verdict.sentence


def test_fewer_right_answers_are_no_success(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, [0.2, 0.9, 0.5])
    assert (verdict.tone, verdict.headline) == ("bad", "Right answers became fewer")
    assert (
        "20% were right at first, 90% at update 10 and 50% (95 % interval 42 to 58%) at update 20" in verdict.sentence
    )


def test_an_exported_policy_from_before_the_fall_is_what_the_verdict_is_of(tmp_path: Path) -> None:
    write_summary(tmp_path, {"run": "r", "stages": {"ppo": {"exported_step": 10}}})
    write_run(tmp_path, [0.2, 0.9, 0.5])
    verdict = judge(read_run(tmp_path))
    assert verdict is not None
    assert (verdict.tone, verdict.headline) == ("good", "Right answers rose from 20% to 90%")
    assert (
        "The policy of update 10 was exported; it was 50% at update 20 (95 % interval 42 to 58%)." in verdict.sentence
    )


def test_a_change_within_noise_is_none(tmp_path: Path) -> None:
    assert verdict_of(tmp_path, [0.20, 0.21]).headline == "No change beyond noise"


def test_a_learned_reward_beside_the_truth_is_still_compared_with_it(tmp_path: Path) -> None:
    config = GRPO.replace('{kind: function, target: "rewards:is_right"}', "{kind: model}")
    (tmp_path / "config.yaml").write_text(config)
    writer = MetricsWriter(tmp_path, SILENT)
    for step, score, gold in ((0, 0.0, 0.2), (10, 2.0, 0.9)):
        writer.log("ppo", step, {"eval/score": score, "eval/gold": gold, "eval/kl": step / 5})
    writer.close()
    page = page_of(tmp_path)
    assert "Gold followed the score." in page.words
    assert "Score, start → GRPO 0.00 → 2.00 reward model, held-out prompts" in page.words
    assert "Gold, start → GRPO 0.20 → 0.90" in page.words
    assert "Groups" not in page.titles
