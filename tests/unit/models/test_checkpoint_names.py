"""What is published is what `save_pretrained` writes, and stock transformers reads it back as the same policy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models_lab import policy_model, tokenizer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rayrlhf.errors import ModelError
from rayrlhf.models.checkpoint_names import CheckpointNames
from rayrlhf.models.load import make_policy

_DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_EXPERTS = _DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = _DECODER | {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": _DECODER | {"tie_word_embeddings": False},
    "llama": _DECODER | {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": _DECODER,
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": _EXPERTS | {"head_dim": 32},
    "olmoe": _EXPERTS,
    "mixtral": _DECODER | {"num_local_experts": 4},
    "phimoe": _DECODER | {"num_local_experts": 4},
    "granitemoe": _DECODER | {"num_local_experts": 4},
    "deepseek_v2": _LATENT,
    # Its router has a bias that is a buffer here and a weight to an engine.
    "deepseek_v3": _LATENT,
    "ernie4_5_moe": _DECODER | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "gpt_oss": _DECODER | {"num_local_experts": 4, "head_dim": 32},
}
RENAMED = {
    *("gpt_neox", "qwen2_moe", "qwen3_moe", "olmoe", "mixtral", "phimoe", "granitemoe"),
    *("deepseek_v2", "deepseek_v3", "ernie4_5_moe"),
}
"""Where a name in memory is not one on disk."""


def policy(model_type: str) -> PreTrainedModel:
    return make_policy({"model_type": model_type} | ARCHITECTURES[model_type], tokenizer(), seed=0)


def saved(model: PreTrainedModel, directory: Path) -> dict[str, Tensor]:
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_names_shapes_and_values_are_those_on_disk(model_type: str, tmp_path: Path) -> None:
    model = policy(model_type)
    names = CheckpointNames(model, dtype=torch.float32)
    disk = saved(model, tmp_path)
    published = {name: tensor.clone() for name, tensor in names.published(model)}
    assert published.keys() == disk.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in disk.items())
    assert {name: shape for name, _, shape in names.tensors} == {n: tuple(t.shape) for n, t in disk.items()}
    assert (published.keys() == {name for name, _ in model.named_parameters()}) is (model_type not in RENAMED)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "deepseek_v3"])
def test_a_model_loaded_from_disk_is_published_as_it_was_written(model_type: str, tmp_path: Path) -> None:
    """A loaded model carries the conversions of its own checkpoint, which may differ from those of its type."""
    disk = saved(policy(model_type), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    published = dict(CheckpointNames(loaded, dtype=torch.float32).published(loaded))
    assert published.keys() == disk.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in disk.items())


def test_weights_come_in_the_precision_asked_for_and_buffers_in_their_own() -> None:
    tensors = CheckpointNames(policy("deepseek_v3"), dtype=torch.bfloat16).tensors
    full = {name for name, dtype, _ in tensors if dtype == torch.float32}
    assert full == {"model.layers.1.mlp.gate.e_score_correction_bias"}
    assert {dtype for name, dtype, _ in tensors if name not in full} == {torch.bfloat16}


def test_weights_come_layer_by_layer_and_tied_ones_once() -> None:
    names = [name for name, _, _ in CheckpointNames(policy("qwen3_moe"), dtype=torch.float32).tensors]
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert names[0] == "model.embed_tokens.weight"
    assert layers == sorted(layers)
    tied = [name for name, _, _ in CheckpointNames(policy("llama"), dtype=torch.float32).tensors]
    assert "lm_head.weight" not in tied
    assert "lm_head.weight" in names


def test_one_layer_at_a_time_is_taken_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that stops after the first layer's first weight has had no weight of the second gathered."""
    from rayrlhf.models import sharding

    model = policy("qwen3_moe")
    names = CheckpointNames(model, dtype=torch.float32)
    gathered: list[int] = []
    whole = sharding.whole
    monkeypatch.setattr(sharding, "whole", lambda tensor: gathered.append(tensor.numel()) or whole(tensor))
    stream = names.published(model)
    while ".layers.0." not in next(stream)[0]:
        pass
    first = sum(p.numel() for n, p in model.named_parameters() if ".layers.0." in n or "embed_tokens" in n)
    assert sum(gathered) == first


def test_a_model_whose_layers_cannot_be_told_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that fuses weights of two layers gives other tensors layer by layer than as a whole."""
    from transformers.core_model_loading import Chunk, WeightConverter

    model = policy_model("qwen2")
    across = WeightConverter(
        ["model.both.weight"],
        ["model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"],
        operations=[Chunk(dim=0)],
    )
    model._weight_conversions = [across]
    with pytest.raises(ModelError, match="Qwen2ForCausalLM cannot be published"):
        CheckpointNames(model, dtype=torch.float32)


def test_a_frozen_view_of_the_weights_is_not_kept() -> None:
    """Published again after a step, the stream has the new values."""
    model = policy("mixtral")
    names = CheckpointNames(model, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in names.published(model)}
    with torch.no_grad():
        for parameter in model.parameters():
            assert isinstance(parameter, nn.Parameter)
            parameter.add_(1.0)
    after = dict(names.published(model))
    assert all(torch.allclose(after[name], tensor + 1.0) for name, tensor in before.items())
