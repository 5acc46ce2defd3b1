"""Exported directories: what stock transformers reads back, and what a failed export leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models_lab import FAMILIES, policy_model, sequences, stock_output, tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrlhf.models.export import export_model
from rayrlhf.models.load import load_policy


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_survive_the_round_trip_bit_for_bit(tmp_path: Path, family: str) -> None:
    model = policy_model(family)
    export_model(model, tokenizer(), tmp_path / "policy")
    [row] = sequences([11])
    wanted = stock_output(model, row)
    for reloaded in (AutoModelForCausalLM.from_pretrained(tmp_path / "policy"), load_policy(str(tmp_path / "policy"))):
        assert type(reloaded) is type(model)
        assert (stock_output(reloaded.eval(), row) == wanted).all()
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").get_vocab() == tokenizer().get_vocab()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied"])
def test_tied_weights_are_written_once(tmp_path: Path, family: str) -> None:
    model = policy_model(family)
    # A state gathered from shards holds tied weights as tensors of their own.
    state = {name: value.clone() + 1.0 for name, value in model.state_dict().items()}
    export_model(model, tokenizer(), tmp_path / "policy", state_dict=state)
    written = load_file(tmp_path / "policy" / "model.safetensors")
    assert ("lm_head.weight" in written) is (family == "qwen2")
    assert set(written) | {"lm_head.weight"} == set(state)
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_the_end_tokens_are_written_for_the_engine(tmp_path: Path) -> None:
    export_model(policy_model(), tokenizer(), tmp_path / "policy")
    generation = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer().eos_token_id
    assert generation["pad_token_id"] == tokenizer().pad_token_id


def test_an_export_replaces_the_whole_directory(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    export_model(policy_model(seed=1), tokenizer(), target)
    (target / "stale.txt").write_text("of an earlier run")
    (tmp_path / ".policy.partial").mkdir()
    (tmp_path / ".policy.partial" / "half.bin").write_text("of a killed run")
    export_model(policy_model(seed=2), tokenizer(), target)
    assert not (target / "stale.txt").exists()
    assert not (target / "half.bin").exists()
    assert torch.equal(load_policy(str(target)).lm_head.weight, policy_model(seed=2).lm_head.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]


def test_a_failed_export_leaves_the_earlier_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "policy"
    export_model(policy_model(seed=1), tokenizer(), target)

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tokenizer()), "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_model(policy_model(seed=2), tokenizer(), target)
    assert torch.equal(load_policy(str(target)).lm_head.weight, policy_model(seed=1).lm_head.weight)


def test_a_new_directory_may_lie_deep(tmp_path: Path) -> None:
    export_model(policy_model(), tokenizer(), tmp_path / "runs" / "name" / "policy")
    assert (tmp_path / "runs" / "name" / "policy" / "config.json").is_file()
