"""The parity gate in whole runs: on every path that weights take to an engine, at any staleness."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import command, environment, rows

from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = ("red", "blue", "green", "small", "large", "cat", "dog", "house", "tree", "river", "stone", "walks", "near")
DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
CONFIG = """
stages: [ppo]
model: {path: policy, max_length: 96}
data: {root: ., prompts: {path: prompts.jsonl, format: prompts}, max_prompt_tokens: 40}
sampling: {max_new_tokens: 16}
ppo:
  updates: 4
  prompts_per_step: 8
  samples_per_prompt: 2
  advantage: rloo
  max_staleness: 1
  rewards: [{kind: function, target: "task:reward"}]
  optim: {lr: 1.0e-2, schedule: constant}
  evaluate_every: 4
  evaluate_prompts: 8
parity: {every: 2, prompts: 8}
output_dir: runs
name: run
wandb: {mode: disabled}
rollout: {cpus: 0.5, threads: 1, kv_cache_gib: 0.1}
scoring: {cpus: 0.5, threads: 1}
learner: {cpus: 0.5, threads: 1}
cluster: {object_store_gib: 0.2}
"""
STALE_HEAD = '''
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    """Makes engines forget, at each update, the packed copy of a tied head."""

    def find_spec(self, name, path, target=None):
        if name != "rayrlhf.rollout.transfer":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            module.ObjectStoreTransfer.finish_weight_update = lambda self: module.finalize_layerwise_reload(
                self.model, self.model_config
            )

        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Finder())
'''


def prepare(directory: Path, model_type: str, **init: Any) -> Path:
    tokenizer = train_tokenizer([" ".join(WORDS)], vocab_size=300)
    policy = make_policy(DECODER | {"model_type": model_type} | init, tokenizer, seed=0)
    export_model(policy, tokenizer, directory / "policy")
    prompts = [{"prompt": f"{a} {b}"} for a in WORDS for b in WORDS[:6]]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (directory / "task.py").write_text(
        "def reward(prompt, response, reference):\n    return float(len(response) % 7)\n"
    )
    (directory / "run.yaml").write_text(CONFIG)
    return directory


def run(directory: Path, *overrides: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    env = environment()
    env["PYTHONPATH"] = ":".join(str(p) for p in (path, directory, env.get("PYTHONPATH")) if p)
    arguments = command("run", "run.yaml", *overrides)
    return subprocess.run(arguments, capture_output=True, text=True, cwd=directory, env=env, timeout=280)


def test_a_mixture_of_experts_is_trained_on_what_it_samples(tmp_path: Path) -> None:
    """Asynchronous, where nothing else compares engine and learner under the same weights."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    done = run(prepare(tmp_path, "qwen3_moe", **experts))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    judged = {row["step"]: row for row in rows(tmp_path / "runs/run/metrics.jsonl", stage="ppo") if "parity/p99" in row}
    assert list(judged) == [0, 1, 2, 4]
    assert all(row["parity/p99"] < 1e-3 and row["parity/outside"] == 0.0 for row in judged.values())


def test_an_engine_that_keeps_an_old_head_stops_the_run_at_the_first_update(tmp_path: Path) -> None:
    """Version 0 published again shows nothing, as the weights an engine keeps are those it is given."""
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(STALE_HEAD)
    done = run(prepare(tmp_path, "qwen2"), path=tmp_path / "fault")
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-4000:]
    said = done.stdout + done.stderr
    assert "Parity gate passed" in said
    assert "version 1, after a weight update" in said
    assert "the weight sync is the suspect" in said
    assert not rows(tmp_path / "runs/run/metrics.jsonl", stage="ppo", step=2)
    assert not (tmp_path / "runs/run/policy").exists()
