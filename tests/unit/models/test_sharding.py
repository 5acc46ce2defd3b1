"""One process against two that shard the model with FSDP2 over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shard_process
import torch
from models_lab import policy_model, reward_dir
from safetensors.torch import load_file
from shard_process import CASES, MAX_NORM
from torch import Tensor
from transformers import AutoModelForCausalLM

from rayrlhf.models.sharding import clip_gradients, full_state, load_full_state

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])]),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process, then two, have left what came of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    reward_dir(folder / "reward")
    for case in CASES:
        torch.save(shard_process.run(case, 0, 1, folder), folder / f"{case}-1.pt")
    script = str(HERE / "shard_process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(folder)],
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    for case in CASES:
        outcome = torch.load(folder / f"{case}-1.pt", weights_only=True)
        outcome["resumed"][2] = shard_process.resumed(case, 0, 1, folder, writer=2)
        torch.save(outcome, folder / f"{case}-1.pt")
    return folder


def outcomes(directory: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (torch.load(directory / f"{case}-{world}.pt", weights_only=True) for world in (1, 2))
    return one, two


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
class TestTwoRanks:
    def test_gradients_are_sums_over_ranks(self, directory: Path, case: str) -> None:
        one, two = outcomes(directory, case)
        assert min(float(gradient.abs().max()) for gradient in one["gradients"].values()) > 1e-5
        assert largest_difference(one["gradients"], two["gradients"]) < 1e-5
        assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
        assert max(one["norms"]) > MAX_NORM

    def test_parameters_after_steps_are_those_of_one_process(self, directory: Path, case: str) -> None:
        one, two = outcomes(directory, case)
        assert largest_difference(one["parameters"], two["parameters"]) < 1e-5
        assert largest_difference(one["later"], two["later"]) < 1e-5
        assert largest_difference(one["parameters"], one["later"]) > 1e-4

    def test_a_state_resumes_on_as_many_ranks_and_on_others(self, directory: Path, case: str) -> None:
        for outcome in outcomes(directory, case):
            assert set(outcome["resumed"]) == {1, 2}
            for parameters in outcome["resumed"].values():
                assert largest_difference(parameters, outcome["later"]) < 1e-5
        one, two = outcomes(directory, case)
        assert largest_difference(one["resumed"][1], one["later"]) == 0
        assert largest_difference(two["resumed"][2], two["later"]) == 0

    def test_saving_before_the_first_step_changes_nothing(self, directory: Path, case: str) -> None:
        one, two = outcomes(directory, case)
        assert one["optimizer_before"] is two["optimizer_before"] is None
        assert largest_difference(one["first_state"], two["first_state"]) == 0

    def test_the_export_is_a_plain_directory(self, directory: Path, case: str) -> None:
        one, two = (directory / f"export-{case}-{world}" for world in (1, 2))
        configs = [json.loads((path / "config.json").read_text()) for path in (one, two)]
        assert configs[0] == configs[1]
        if case in ("reward", "critic"):
            return
        models = [AutoModelForCausalLM.from_pretrained(path) for path in (one, two)]
        tokens = torch.arange(2, 20).unsqueeze(0)
        with torch.no_grad():
            logits = [model(tokens).logits for model in models]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_tied_weights_stay_tied_over_ranks(directory: Path) -> None:
    one, two = outcomes(directory, "qwen2-tied")
    assert "lm_head.weight" not in two["parameters"]
    assert one["state_names"] == two["state_names"]
    model = AutoModelForCausalLM.from_pretrained(directory / "export-qwen2-tied-2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model.lm_head.weight.detach(), two["parameters"]["model.embed_tokens.weight"])


@pytest.mark.slow
def test_experts_are_published_from_shards_as_they_are_saved_whole(directory: Path, tmp_path: Path) -> None:
    policy_model("mixtral", num_local_experts=4).save_pretrained(tmp_path)
    disk = load_file(tmp_path / "model.safetensors")
    published = torch.load(directory / "experts-2.pt", weights_only=True)
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in published
    assert published.keys() == disk.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in disk.items())


def test_clipping_scales_to_the_largest_norm_and_returns_the_norm_before() -> None:
    model = torch.nn.Linear(2, 2, bias=False)
    model.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert clip_gradients(model, 10.0) == pytest.approx(5.0)
    assert torch.equal(model.weight.grad, torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    assert clip_gradients(model, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.0], [0.0, 0.8]]), atol=1e-5, rtol=0)


def test_an_optimizer_that_has_not_stepped_is_saved_and_loaded_as_such() -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    plain, plain_optimizer = made()
    step(plain, plain_optimizer)
    saved, saved_optimizer = made()
    state = full_state(saved, saved_optimizer)
    state = {"model": {name: value.clone() for name, value in state["model"].items()}, "optimizer": state["optimizer"]}
    step(saved, saved_optimizer)
    loaded, loaded_optimizer = made()
    step(loaded, loaded_optimizer)
    load_full_state(loaded, loaded_optimizer, state, world=1)
    step(loaded, loaded_optimizer)
    for model in (saved, loaded):
        for ours, wanted in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, wanted)
