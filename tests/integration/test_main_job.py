"""The contract of a finished run's folder, on a tiny version of the quickstart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import QUICKSTART, ROOT, TINY, rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rayrlhf.config import load_config, parse_config
from rayrlhf.data.batching import collate
from rayrlhf.data.dataset import load_preferences
from rayrlhf.data.encoding import encode_rows, preference_encoder
from rayrlhf.models.forward import sequence_scores
from rayrlhf.models.load import load_reward_model
from rayrlhf.telemetry.metrics import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_summary_holds_every_fact_of_the_contract(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["run"] == "tiny"
    assert summary["seed"] == 0
    assert summary["wall_seconds"] > 0
    assert 100e6 < summary["peak_memory_bytes"] < 24e9
    assert summary["stages"].keys() == {"sft", "reward", "ppo"}
    assert {"wall_seconds", "tokens", "loss"} <= summary["stages"]["sft"].keys()
    assert 0.0 <= summary["stages"]["reward"]["heldout_accuracy"] <= 1.0
    ppo = summary["stages"]["ppo"]
    assert ppo["updates"] == ppo["policy_versions"] == 3
    assert ppo["samples_trained"] == 3 * 8 * 2
    assert (ppo["samples_lost"], ppo["samples_duplicated"], ppo["samples_dropped"]) == (0, 0, 0)
    assert ppo["restarts"] == {"rollout": 0, "scoring": 0, "learner": 0}
    assert 0.0 <= ppo["gold_before"] <= ppo["gold_best"] <= 1.0
    assert ppo["mismatch_p99"] < 1e-3
    evaluated = {row["step"]: row for row in rows(trained / "metrics.jsonl", stage="ppo") if "eval/gold" in row}
    assert list(evaluated) == [0, 3]
    assert ppo["exported_step"] == max(evaluated, key=lambda step: evaluated[step]["eval/gold"])
    assert ppo["kl_to_reference"] == evaluated[ppo["exported_step"]]["eval/kl"]
    assert ppo["gold_after"] == evaluated[ppo["exported_step"]]["eval/gold"]
    assert 0.0 <= ppo["gold_confirmed"] <= ppo["gold_best"]


def test_every_step_is_logged_once_under_declared_names(trained: Path) -> None:
    for stage, steps in (("sft", range(1, 13)), ("reward", range(1, 13)), ("ppo", range(4))):
        logged = rows(trained / "metrics.jsonl", stage=stage)
        assert [row["step"] for row in logged] == list(steps)
        for row in logged:
            assert set(row) - METRICS.keys() == {"stage", "step", "time"}
    last = rows(trained / "metrics.jsonl", stage="ppo", step=3)[0]
    wanted = [
        "reward/score",
        "kl/reference",
        "rollout/length",
        "rollout/truncated",
        "policy/entropy",
        "policy/approx_kl",
    ]
    wanted += ["policy/clip_fraction", "critic/loss", "critic/explained_variance", "mismatch/p50", "mismatch/p99"]
    wanted += [
        "rollout/staleness",
        "perf/tokens_per_second",
        "time/rollout",
        "time/scoring",
        "time/learner",
        "time/sync",
    ]
    wanted += ["time/learner_waiting", "sync/seconds", "sync/bytes", "ledger/trained", "perf/restarts_rollout"]
    assert set(wanted) <= last.keys()
    assert {name: last[f"perf/{name}"] for name in ("workers_rollout", "workers_scoring", "restarts_learner")} == {
        "workers_rollout": 1,
        "workers_scoring": 1,
        "restarts_learner": 0,
    }
    assert last["policy/ratio_max_error"] < 1e-4
    assert last["rollout/staleness"] == 0
    assert last["ledger/lost"] == 0


def test_samples_carry_texts_scores_and_versions_once_each(trained: Path) -> None:
    samples = rows(trained / "samples.jsonl", stage="ppo")
    assert len({row["sample_id"] for row in samples}) == len(samples) == 3 * 8 * 2
    assert {(row["step"], row["policy_version"]) for row in samples} == {(1, 0), (2, 1), (3, 2)}
    before, after = (rows(trained / "samples.jsonl", stage="eval", step=step) for step in (0, 3))
    assert [row["prompt"] for row in before] == [row["prompt"] for row in after]
    assert all(isinstance(row["gold"], float) and isinstance(row["score"], float) for row in before + after)


def test_the_resolved_config_starts_the_same_run(trained: Path) -> None:
    config = parse_config(yaml.safe_load((trained / "config.yaml").read_text()))
    assert config.ppo.updates == 3


def test_the_wandb_files_hold_the_history(trained: Path) -> None:
    files = list((trained / "wandb").rglob("*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for name in (b"kl/reference", b"reward/accuracy", b"policy/nll"):
        assert name in content


def test_the_report_is_self_contained(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    assert "<svg" in page
    assert 'src="http' not in page
    assert "@import" not in page


def test_the_exported_policies_answer_alike_in_transformers_and_vllm(trained: Path) -> None:
    """Greedy outputs of stock transformers and of a fresh vLLM engine are equal for sft/ and policy/."""
    code = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=96, kv_cache_memory_bytes=2**28)
out = llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0.0, max_tokens=16))
print("TOKENS" + json.dumps([list(o.outputs[0].token_ids) for o in out]))
"""
    prompts = [row["prompt"] for row in rows(trained / "samples.jsonl", stage="eval", step=0)][:4]
    for name in ("sft", "policy"):
        directory = trained / name
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        expected = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            generated = model.generate(ids, do_sample=False, max_new_tokens=16, pad_token_id=tokenizer.pad_token_id)
            expected.append(generated[0, ids.shape[1] :].tolist())
        engine = subprocess.run(
            [sys.executable, "-c", code, str(directory), json.dumps(prompts)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"},
            timeout=240,
        )
        assert engine.returncode == 0, engine.stderr[-3000:]
        line = next(line for line in engine.stdout.splitlines() if line.startswith("TOKENS"))
        assert json.loads(line.removeprefix("TOKENS")) == expected


def test_the_exported_reward_model_scores_alike_in_stock_transformers(trained: Path) -> None:
    config = load_config(QUICKSTART, TINY)
    directory = trained / "reward_model"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert model.config.pad_token_id not in (None, model.config.eos_token_id)
    rows = load_preferences(config).heldout[:8]
    pairs, _ = encode_rows(rows, preference_encoder(tokenizer, config), tokenizer)
    sequences = [ids for pair in pairs for ids in pair.sequences]
    whole = collate(sequences, [1] * len(sequences), range(len(sequences)), pad_id=tokenizer.pad_token_id)
    with torch.no_grad():
        stock = model.eval()(whole.input_ids, attention_mask=whole.attention_mask.long()).logits.squeeze(-1)
        ours = sequence_scores(load_reward_model(str(directory)), whole)
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
