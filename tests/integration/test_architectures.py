"""Families of architectures: engine and learner agree on weights loaded from disk, and on weights published to it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.is_available(), reason="measures vLLM's CPU build"),
]

DENSE = ("llama", "qwen2", "gemma2")
EXPERTS = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "mellum")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    output = tmp_path_factory.mktemp("table") / "rows.jsonl"
    script = str(ROOT / "tests" / "benchmarks" / "architectures.py")
    command = [sys.executable, script, *DENSE, *EXPERTS, "--output", str(output)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(), timeout=500)
    return {row["model_type"]: row for row in map(json.loads, Path(output).read_text().splitlines())}


@pytest.mark.parametrize("model_type", [*DENSE, *EXPERTS])
def test_engine_and_learner_agree_before_and_after_an_update(table: dict[str, dict[str, Any]], model_type: str) -> None:
    row = table[model_type]
    assert row["said"] == ""
    assert row["verdict"] == "equal"
    assert row["stale"]["p50"] > 0.1, "an engine that kept the old weights would not show"
