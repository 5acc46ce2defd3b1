"""A finished run's reward model, trained on with the policy's own pairs by the command, and used."""

import json
import math
from pathlib import Path

import pytest
from conftest import QUICKSTART, TINY, rayrlhf, rows, succeed

pytestmark = pytest.mark.slow

JUDGE = """
def shorter(prompt, response, reference):
    return -float(len(response))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose policy has learnt to end its responses: those that are cut make no pairs."""
    longer = ["sft.max_steps=150", "sampling.max_new_tokens=56", "ppo.samples_per_prompt=4"]
    succeed("run", str(QUICKSTART), *TINY, *longer, f"output_dir={tmp_path}", "name=tiny")
    return tmp_path / "tiny"


def numbers(value: object) -> list[float]:
    if isinstance(value, dict | list):
        return [n for inner in (value.values() if isinstance(value, dict) else value) for n in numbers(inner)]
    return [value] if isinstance(value, float) else []


def test_a_refreshed_model_is_judged_before_and_after_and_serves(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a rule of length that the first reward model does not know: what it is taught, it learns, and the run says so."""
    (tmp_path / "rules.py").write_text(JUDGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    told = succeed(
        "reward", "refresh", str(run), "reward.prompts_per_step=8", "reward.epochs=8", "reward.optim.lr=1e-3",
        "--label", "rules:shorter", "--heldout", "0.6", "--replay", "0.5",
    )  # fmt: skip
    model = run / "refresh" / "reward_model"
    found = json.loads((run / "refresh.json").read_text())
    assert found["model"] == str(model)
    assert found["label"] == "rules:shorter"
    pairs = rows(run / "refresh" / "pairs.jsonl")
    own = [row for row in pairs if row["subset"] != "replayed"]
    assert all(len(row["responses"][0]["text"]) < len(row["responses"][1]["text"]) for row in own)
    assert len(own) == found["pairs"] + found["heldout_pairs"]
    assert found["replayed"] == round(0.5 * found["pairs"])
    for when in ("before", "after"):
        assert sum(one["pairs"] for one in found[when]["by_update"] if one) == found["heldout_pairs"]
        assert all(math.isfinite(number) for number in numbers(found[when]))
    assert found["before"]["home"]["accuracy"] == pytest.approx(
        json.loads((run / "reward_model" / "evaluation.json").read_text())["accuracy"]
    )
    assert found["after"]["on_policy"]["accuracy"] > found["before"]["on_policy"]["accuracy"]
    assert "its own held-out" in told
    assert "How far the reward model is from home" in (run / "report.html").read_text()
    assert "FAILED" not in succeed("verify", str(model), "--no-vllm")

    again = rayrlhf("reward", "refresh", str(run), "--label", "rules:shorter", "--resume")
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout
    assert json.loads((run / "refresh.json").read_text())["after"] == found["after"]
