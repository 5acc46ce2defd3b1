"""Where and how precisely a process computes, and how large a model is before it is loaded."""

from pathlib import Path

import pytest
import torch
from models_lab import FAMILIES, policy_dir, policy_model, tokenizer

from rayrlhf.config import ModelConfig
from rayrlhf.errors import ModelError
from rayrlhf.models.device import resolve_device, resolve_dtype, resolve_dtype_name
from rayrlhf.models.size import count_parameters


@pytest.mark.parametrize("available", [False, True])
def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto").type == ("cuda" if available else "cpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("dtype", "device", "wanted"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
    ],
)
def test_precision_follows_the_device_unless_it_is_given(dtype: str, device: str, wanted: torch.dtype) -> None:
    assert resolve_dtype(dtype, torch.device(device)) == wanted
    assert resolve_dtype_name(dtype, device) == str(wanted).removeprefix("torch.")


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "gpt2"])
def test_parameters_are_counted_as_the_model_has_them(tmp_path: Path, family: str) -> None:
    wanted = sum(p.numel() for p in policy_model(family).parameters())
    assert count_parameters(ModelConfig(init=FAMILIES[family], vocab_size=len(tokenizer()))) == wanted
    assert count_parameters(ModelConfig(path=policy_dir(tmp_path / "policy", family))) == wanted


def test_a_model_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ModelError, match=r"from model\.init=.*quen2"):
        count_parameters(ModelConfig(init={"model_type": "quen2"}))
    with pytest.raises(ModelError, match=r"from model\.path=/no/such/model: .*does not exist here"):
        count_parameters(ModelConfig(path="/no/such/model"))
