"""GRPO with a verifier through the real loop, as the shipped configuration starts it, shortened."""

import json
from pathlib import Path

import pytest
from conftest import QUICKSTART, ROOT, rows, succeed

pytestmark = pytest.mark.slow


def test_the_arithmetic_run_knows_no_critic_and_no_reward_model(tmp_path: Path) -> None:
    out = succeed(
        "run",
        str(ROOT / "configs" / "arithmetic_grpo.yaml"),
        "data.task.demonstrations=6000",
        "sft.epochs=1",
        "ppo.updates=3",
        "ppo.prompts_per_step=8",
        "ppo.evaluate_every=3",
        "ppo.evaluate_prompts=64",
        "rollout.kv_cache_gib=0.25",
        "cluster.object_store_gib=0.25",
        "wandb.mode=disabled",
        f"output_dir={tmp_path}",
        "name=sums",
    )
    run = tmp_path / "sums"
    assert {p.name for p in run.iterdir()} >= {"sft", "policy"}
    assert not (run / "critic").exists()
    assert not (run / "reward_model").exists()

    trained = rows(run / "metrics.jsonl", stage="ppo")
    for row in (row for row in trained if row["step"] > 0):
        assert 0.0 <= row["reward/pass_rate"] <= row["reward/pass_at_k"] <= 1.0
        assert 0.0 <= row["reward/groups_equal"] <= 1.0
        assert row["reward/pass_rate"] == pytest.approx(row["reward/score"])
        assert not any(name.startswith("critic/") for name in row)
    judged = [row for row in trained if row.get("eval/pass_rate") is not None]
    assert [row["step"] for row in judged] == [0, 3]
    for row in judged:
        assert row["eval/pass_n"] == 64
        assert row["eval/pass_rate_low"] <= row["eval/pass_rate"] <= row["eval/pass_rate_high"]
        assert row["eval/pass_rate"] == pytest.approx(row["eval/gold"])

    # By another reading of the same answers: those that end with Python's own sum.
    answers = rows(run / "samples.jsonl", stage="eval", step=3)
    sums = [row["response"].split()[-1:] == [str(eval(row["prompt"].removesuffix("=")))] for row in answers]
    assert sum(sums) / len(sums) == pytest.approx(judged[-1]["eval/pass_rate"])

    assert "ppo: GRPO" in out
    assert "right by the verifier" in out
    assert "evaluation: right" in out
    facts = json.loads((run / "summary.json").read_text())["stages"]["ppo"]
    exported = next(row for row in judged if row["step"] == facts["exported_step"])
    assert exported["eval/pass_rate"] == max(row["eval/pass_rate"] for row in judged)
    assert facts["pass_rate_after"] == pytest.approx(exported["eval/pass_rate"])
    page = (run / "report.html").read_text()
    assert "GRPO, 3 updates" in page
    assert "Right answers, SFT → GRPO" in page
    assert "Critic" not in page
    assert "Reward model" not in page


def test_grpo_takes_a_learned_reward_model_as_it_is(ppo_only: list[str], tmp_path: Path) -> None:
    out = succeed("run", str(QUICKSTART), *ppo_only, "ppo.advantage=grpo", f"output_dir={tmp_path}", "name=learned")
    run = tmp_path / "learned"
    assert not (run / "critic").exists()
    trained = [row for row in rows(run / "metrics.jsonl", stage="ppo") if row["step"] > 0]
    assert all("reward/groups_equal" in row and "reward/pass_rate" not in row for row in trained)
    assert "ppo: GRPO" in out
    assert "score by the reward model" in out
    page = (run / "report.html").read_text()
    assert "Score, start → GRPO" in page
    assert "Right answers" not in page
