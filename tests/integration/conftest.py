"""A tiny version of the quickstart: the same pipeline, small enough for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
TINY = [
    "model.init.hidden_size=64",
    "model.init.num_attention_heads=2",
    "model.init.num_key_value_heads=2",
    "model.init.intermediate_size=128",
    "data.task.demonstrations=400",
    "data.task.preferences=400",
    "sft.max_steps=12",
    "reward.max_steps=12",
    "reward.members=1",
    "ppo.updates=3",
    "ppo.prompts_per_step=8",
    "ppo.samples_per_prompt=2",
    "ppo.evaluate_prompts=8",
    "parity.prompts=8",
    "sampling.max_new_tokens=24",
    "rollout.kv_cache_gib=0.25",
    "cluster.object_store_gib=0.25",
    "wandb.mode=offline",
]


def environment() -> dict[str, str]:
    """What a command gets: read when it starts, as Ray turns its token authentication on in the process of the tests."""
    dropped = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, "OMP_NUM_THREADS": "2"}


def command(*args: str) -> list[str]:
    """The rayrlhf command of this environment."""
    return [sys.executable, "-m", "rayrlhf.cli.main", *args]


def rayrlhf(*args: str, timeout: float = 280.0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(command(*args), capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=timeout)


def succeed(*args: str, timeout: float = 280.0) -> str:
    """Run the command, which must succeed; its output."""
    done = rayrlhf(*args, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def rows(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a JSONL file that carry the wanted values."""
    loaded = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in loaded if all(row.get(key) == value for key, value in wanted.items())]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A finished tiny run of all three stages, made once for all processes of the tests; read it, do not write to it."""
    base = tmp_path_factory.getbasetemp()
    output = (base if worker_id == "master" else base.parent) / "trained"
    with FileLock(f"{output}.lock"):
        if not (output / "tiny" / "report.html").exists():
            succeed("run", str(QUICKSTART), *TINY, f"output_dir={output}", "name=tiny")
    return output / "tiny"


@pytest.fixture(scope="session")
def ppo_only(trained: Path) -> list[str]:
    """Overrides that start PPO from the finished run's SFT policy and reward model."""
    return [
        *TINY,
        "stages=[ppo]",
        "model.init=null",
        f"model.path={trained / 'sft'}",
        f"ppo.rewards=[{{kind: model, path: {trained / 'reward_model'}}}]",
    ]
