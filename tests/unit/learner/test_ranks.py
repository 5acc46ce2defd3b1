"""One process against two that shard the models with FSDP2 over gloo."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_lab import largest_difference
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])]),
}
ALL = "sft,reward,ppo,estimators,poisoned"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


def start(rank: int, world: int, address: str, directory: Path) -> "subprocess.Popen[str]":
    arguments = [sys.executable, str(HERE / "rank_process.py"), ALL, str(rank), str(world), address, str(directory)]
    return subprocess.Popen(arguments, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process, then two, have left what came of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [start(0, 1, "choose", folder)]
    finish(processes)
    (folder / "address").unlink()
    processes = [start(0, 2, "choose", folder)]
    deadline = time.monotonic() + 60
    while not (folder / "address").exists():
        assert processes[0].poll() is None, processes[0].communicate()[0]
        assert time.monotonic() < deadline, "rank 0 chose no address"
        time.sleep(0.05)
    processes.append(start(1, 2, (folder / "address").read_text(), folder))
    finish(processes)
    return folder


def finish(processes: list["subprocess.Popen[str]"]) -> None:
    try:
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def outcomes(directory: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (torch.load(directory / f"{case}-{world}.pt", weights_only=True) for world in (1, 2))
    return one, two


@pytest.mark.parametrize("case", ["sft", "reward", "ppo"])
def test_two_ranks_make_the_same_parameters(directory: Path, case: str) -> None:
    one, two = outcomes(directory, case)
    assert largest_difference(one["parameters"], two["parameters"]) < 5e-6
    assert one["tokens"] == two["tokens"]


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["gae", "rloo", "grpo", "reinforce"])
def test_every_estimator_is_the_same_on_two_ranks(directory: Path, kind: str, aggregation: str) -> None:
    one, two = (outcome[f"{kind} {aggregation}"] for outcome in outcomes(directory, "estimators"))
    assert largest_difference(one["parameters"], two["parameters"]) < 5e-6
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("case", ["sft", "reward", "ppo"])
def test_two_ranks_report_the_same_metrics(directory: Path, case: str) -> None:
    one, two = outcomes(directory, case)
    for alone, shared in zip(one["metrics"], two["metrics"], strict=True):
        assert shared == pytest.approx(alone, rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("case", ["sft", "reward", "ppo"])
def test_checkpoints_resume_exactly_and_across_numbers_of_ranks(directory: Path, case: str) -> None:
    """One rank resumes its own; two ranks resume, in the case of ppo, what one rank wrote."""
    one, two = outcomes(directory, case)
    assert largest_difference(one["resumed"], one["parameters"]) == 0.0
    assert largest_difference(two["resumed"], two["parameters"]) < (5e-6 if case == "ppo" else 1e-7)
    for straight, again in zip(two["metrics"], two["resumed_metrics"], strict=False):
        assert again == pytest.approx(straight, rel=1e-3, abs=2e-5)


def test_two_ranks_publish_and_export_the_same_policy(directory: Path) -> None:
    one, two = outcomes(directory, "ppo")
    assert largest_difference(one["published"], two["published"]) < 5e-6
    assert "lm_head.weight" not in two["published"], "tied weights are published once"
    loaded = AutoModelForCausalLM.from_pretrained(directory / "ppo-2-policy")
    exported = dict(loaded.named_parameters())
    assert all(torch.equal(exported[name], value) for name, value in two["published"].items())
    assert (directory / "ppo-2-critic" / "model.safetensors").exists()
    assert (directory / "sft-2-export" / "model.safetensors").exists()
    for row, other in zip(one["logprobs"], two["logprobs"], strict=True):
        assert torch.allclose(row, other, atol=1e-4)


def test_one_ranks_bad_gradient_stops_the_step_on_all(directory: Path) -> None:
    _, two = outcomes(directory, "poisoned")
    assert two["metrics"][0]["optim/skipped"] == 1.0
    assert largest_difference(two["before"], two["parameters"]) == 0.0
