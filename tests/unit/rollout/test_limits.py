"""What vLLM refuses is known without starting it, and the lists here are vLLM's own."""

import subprocess
import sys
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

from rayrlhf.errors import ModelError
from rayrlhf.rollout.limits import CPU_HEAD_SIZES, check_engine, keeps_states, registered_architectures


def config(model_type: str = "qwen3", **values: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **values)


@pytest.mark.slow
def test_the_lists_are_those_of_the_installed_vllm() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as b\n"
            "from vllm.model_executor.models import registry as r\n"
            "print('SIZES', *b.get_supported_head_sizes())\n"
            "print('NAMES', *r._TEXT_GENERATION_MODELS, *r._MULTIMODAL_MODELS)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.startswith(("SIZES", "NAMES"))}
    assert tuple(map(int, lines["SIZES"])) == CPU_HEAD_SIZES
    assert (registered_architectures() or {}).keys() == set(lines["NAMES"])


@pytest.mark.parametrize("size", [16, 24, 48])
def test_a_head_size_without_a_cpu_kernel_is_refused_there_alone(size: int) -> None:
    with pytest.raises(ModelError, match=rf"the policy x has heads of {size} .* or device=cuda\.$"):
        check_engine(config(head_dim=size), origin="the policy x", device="cpu")
    check_engine(config(head_dim=size), origin="the policy x", device="cuda")


def test_the_head_size_is_worked_out_where_it_is_not_given() -> None:
    with pytest.raises(ModelError, match="heads of 16"):
        check_engine(config("llama", hidden_size=64, num_attention_heads=4), origin="x", device="cpu")
    check_engine(config("llama", hidden_size=64, num_attention_heads=2), origin="x", device="cpu")
    check_engine(config("mamba2"), origin="x", device="cpu")


@pytest.mark.parametrize(
    ("model_type", "values", "told"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 2},
            "max_window_layers=1",
        ),
    ],
)
def test_what_vllms_model_code_asserts_is_told_before_it_does(
    model_type: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=f"vLLM cannot sample from x: it does not support {told}"):
        check_engine(config(model_type, **values), origin="x", device="cuda")


def test_an_architecture_that_vllm_cannot_run_is_named() -> None:
    with pytest.raises(ModelError, match="vLLM has no model for XLNetLMHeadModel, the architecture of x"):
        check_engine(config("xlnet"), origin="x", device="cuda")


def test_an_architecture_that_vllm_runs_through_transformers_passes() -> None:
    assert "Olmo2ForCausalLM" not in (registered_architectures() or ())
    check_engine(config("olmo2", hidden_size=64, num_attention_heads=2), origin="x", device="cpu")


@pytest.mark.parametrize(
    ("model_type", "values", "told"),
    [
        ("gpt_oss", {"head_dim": 64}, "takes no new weights while it runs"),
        ("deepseek_v3", {}, "its latent attention on CPUs takes no new weights"),
        ("jamba", {}, "selective scan"),
        ("qwen3_next", {"head_dim": 64}, r"for bfloat16 alone: rollout\.dtype=bfloat16"),
        ("olmoe", {"tie_word_embeddings": True}, "is tied to the embedding"),
        ("qwen3_next", {"tie_word_embeddings": True}, "is tied to the embedding"),
    ],
)
def test_what_a_run_would_meet_after_its_first_stages_is_told_before_them(
    model_type: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        check_engine(config(model_type, **values), origin="the policy x", device="cpu")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "cohere", "falcon", "bloom", "gpt2", "mellum"])
def test_a_head_that_vllm_ties_too_is_no_reason_to_refuse(model_type: str) -> None:
    check_engine(config(model_type, tie_word_embeddings=True), origin="x", device="cuda")


def test_latent_attention_and_bfloat16_are_told_where_they_matter() -> None:
    check_engine(config("deepseek_v3"), origin="x", device="cuda")
    check_engine(config("qwen3_next", head_dim=64), origin="x", device="cpu", dtype="bfloat16")


def test_models_with_states_are_known_by_their_configuration() -> None:
    kinds = (
        "mamba",
        "mamba2",
        "falcon_h1",
        "jamba",
        "granitemoehybrid",
        "bamba",
        "lfm2",
        "qwen3_next",
        "recurrent_gemma",
    )
    assert {kind for kind in kinds if not keeps_states(config(kind))} <= {"granitemoehybrid"}
    assert keeps_states(config("granitemoehybrid", layer_types=["mamba", "attention"], num_hidden_layers=2))
    assert not any(keeps_states(config(kind)) for kind in ("llama", "qwen2", "gemma3_text", "olmoe", "gpt2", "bloom"))
