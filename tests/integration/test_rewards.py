"""Rewards of several kinds in the real loop, and what becomes of a score that cannot be had."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import QUICKSTART, TINY, rayrlhf, rows, succeed

pytestmark = pytest.mark.slow

FUNCTIONS = """
import zlib


def always(prompt, response, reference):
    return len(response) / 100.0


def mostly(prompt, response, reference):
    if zlib.crc32((prompt + response).encode()) % 20 == 0:
        raise TimeoutError("the judge did not answer")
    return always(prompt, response, reference)


def never(prompt, response, reference):
    return None
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "judges.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def by_function(name: str) -> str:
    return f'ppo.rewards=[{{kind: function, target: "judges:{name}"}}]'


def test_a_few_missing_scores_are_dropped_and_the_mean_stays(ppo_only: list[str], functions: Path) -> None:
    size = [
        "ppo.updates=2",
        "ppo.prompts_per_step=32",
        "ppo.samples_per_prompt=4",
        "ppo.optim.lr=0",
        "ppo.max_missing=0.2",
    ]
    scores = {}
    for name in ("always", "mostly"):
        succeed("run", str(QUICKSTART), *ppo_only, *size, by_function(name), f"output_dir={functions}", f"name={name}")
        trained = rows(functions / name / "metrics.jsonl", stage="ppo")[1:]
        scores[name] = [row["reward/score"] for row in trained]
        last = trained[-1]
        assert last["ledger/issued"] == 256 == last["ledger/trained"] + last["ledger/dropped"]
        assert last["ledger/lost"] == last["ledger/duplicated"] == last["ledger/in_flight"] == 0
        assert (last["ledger/dropped"] > 3) == (name == "mostly")
        summary = json.loads((functions / name / "summary.json").read_text())["stages"]["ppo"]
        assert summary["samples_dropped"] == last["ledger/dropped"]
    assert scores["mostly"] == pytest.approx(scores["always"], rel=0.05)


def test_scores_that_cannot_be_had_stop_the_run_with_the_cause(ppo_only: list[str], functions: Path) -> None:
    done = rayrlhf("run", str(QUICKSTART), *ppo_only, by_function("never"), f"output_dir={functions}", "name=never")
    assert done.returncode == 1
    told = done.stderr.strip().splitlines()[-1]
    assert "have no score" in told
    assert "judges:never gave no score" in told
    assert "judges:never" in json.loads((functions / "never" / "failure.json").read_text())["message"]


def test_a_learned_term_and_another_are_summed(ppo_only: list[str], trained: Path, functions: Path) -> None:
    model = f"{{kind: model, path: {trained / 'reward_model'}, weight: 0.5}}"
    both = f'ppo.rewards=[{model}, {{kind: function, target: "judges:always", mean: 1.0, std: 2.0}}]'
    succeed("run", str(QUICKSTART), *ppo_only, both, "ppo.updates=1", f"output_dir={functions}", "name=both")
    stats = json.loads((trained / "reward_model" / "reward_stats.json").read_text())["scale"]
    for row in rows(functions / "both" / "samples.jsonl", stage="ppo"):
        learned, length = row["terms"]["model reward_model"], row["terms"]["judges:always"]
        assert length == pytest.approx(len(row["response"]) / 100.0)
        assert abs(learned) < 20 * stats["std"]
        assert row["score"] == pytest.approx(0.5 * learned + (length - 1.0) / 2.0)


def test_an_ensemble_of_models_is_trained_verified_and_used(trained: Path, tmp_path: Path) -> None:
    arguments = [*TINY, "stages=[reward,ppo]", "model.init=null", f"model.path={trained / 'sft'}", "ppo.updates=1"]
    ensemble = ["reward.members=2", "ppo.rewards=[{kind: model, ensemble: mean_std, penalty: 1.0}]"]
    succeed("run", str(QUICKSTART), *arguments, *ensemble, f"output_dir={tmp_path}", "name=two")
    run = tmp_path / "two"
    assert (run / "reward_model" / "members" / "01" / "config.json").exists()
    assert {row["stage"] for row in rows(run / "metrics.jsonl")} == {"reward", "reward_01", "ppo"}
    summary = json.loads((run / "summary.json").read_text())["stages"]["reward"]
    assert summary["members"] == 2
    assert 0.0 <= summary["ece"] <= 1.0
    assert all(row["spread"] > 0 for row in rows(run / "samples.jsonl", stage="ppo"))
    evaluation = json.loads((run / "reward_model" / "evaluation.json").read_text())
    assert summary["heldout_accuracy"] == evaluation["accuracy"]
    assert "Disagreement of the ensemble" in (run / "report.html").read_text()
    told = succeed("verify", str(run / "reward_model"), timeout=200.0)
    assert "FAILED" not in told
    assert "vLLM pooling" in told


def test_the_guard_stops_and_restores_the_best_policy(ppo_only: list[str], trained: Path, tmp_path: Path) -> None:
    """What is rewarded is the opposite of what the judge says; rollouts that ran ahead are dropped, none is lost."""
    judge = shutil.copytree(trained / "reward_model", tmp_path / "judge")
    flawed = f"ppo.rewards=[{{kind: model, path: {trained / 'reward_model'}, weight: -1.0}}]"
    guard = ["ppo.guard.action=stop", f"ppo.guard.judge={judge}", "ppo.guard.patience=1", "ppo.evaluate_every=1"]
    wild = ["ppo.updates=20", "ppo.kl.coef=0", "ppo.optim.lr=0.005", "ppo.max_staleness=1", "ppo.evaluate_prompts=32"]
    told = succeed("run", str(QUICKSTART), *ppo_only, flawed, *guard, *wild, f"output_dir={tmp_path}", "name=wild")
    assert "Over-optimisation: the judge has fallen from" in told
    summary = json.loads((tmp_path / "wild" / "summary.json").read_text())["stages"]["ppo"]
    assert summary["guard_stopped"]
    assert summary["policy_versions"] < 20
    assert summary["samples_lost"] == summary["samples_duplicated"] == 0
    evaluated = {row["step"]: row for row in rows(tmp_path / "wild" / "metrics.jsonl", stage="ppo")}
    best = evaluated[summary["guard_peak_step"]]
    assert best["eval/judge"] == max(row["eval/judge"] for row in evaluated.values())
    assert summary["score_after"] == best["eval/score"]
    last = evaluated[max(evaluated)]
    assert last["guard/below_peak"] > 3.0
    assert last["eval/judge"] < best["eval/judge"]
    assert (tmp_path / "wild" / "policy" / "config.json").exists()
