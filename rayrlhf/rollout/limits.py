"""What vLLM cannot sample from, known without starting it."""

import ast
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from rayrlhf.errors import ModelError

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM's attention on CPUs (`CPUAttentionBackend.get_supported_head_sizes`); on CUDA some kernel takes any size."""

_HEAD_SIZES = ("head_dim", "global_head_dim", "attention_head_dim")

_ASSERTED: dict[str, list[tuple[str, Callable[[Any], bool]]]] = {
    "gpt2": [
        ("scale_attn_by_inverse_layer_idx", lambda c: not c.scale_attn_by_inverse_layer_idx),
        ("reorder_and_upcast_attn", lambda c: not c.reorder_and_upcast_attn),
        ("add_cross_attention", lambda c: not c.add_cross_attention),
    ],
    "gptj": [
        ("tie_word_embeddings", lambda c: not c.tie_word_embeddings),
        ("rotary_dim", lambda c: c.rotary_dim is None or c.rotary_dim % 2 == 0),
    ],
    "qwen2": [
        (
            "max_window_layers",
            lambda c: len(set(c.layer_types or [])) < 2 or c.max_window_layers == c.num_hidden_layers,
        )
    ],
}
"""What vLLM's model code asserts of a configuration, by model type: the field, and whether its value passes."""

_TAKES_NO_WEIGHTS = frozenset({"gpt_oss"})
"""Model types whose loader in vLLM writes past the one that takes new weights, and so into nothing."""
_LATENT = frozenset(
    {
        "axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "hy_v4", "kimi_linear",
        "longcat_flash",
    }
)  # fmt: skip
"""Model types of vLLM's latent attention (`is_deepseek_mla`), which on CPUs splits and drops what it loaded."""
_CPU_LACKS = {
    **dict.fromkeys(_LATENT, "its latent attention on CPUs takes no new weights"),
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), "its selective scan (Mamba 1) is not built for CPUs"),
}
"""What vLLM's CPU build cannot do, by model type."""
_CPU_BFLOAT16 = frozenset({"qwen3_next"})
"""Model types whose linear attention has a CPU kernel for bfloat16 alone."""
_STATE_FIELDS = ("mamba_d_state", "mamba_expand", "ssm_state_size", "state_size", "conv_L_cache")
_STATE_LAYERS = frozenset({"mamba", "mamba2", "linear_attention", "conv", "recurrent"})


def check_engine(
    config: PretrainedConfig, *, origin: str, device: str, dtype: str = "float32", trained: bool = True
) -> None:
    """ModelError where vLLM has no model for this configuration, no kernel for it on `device`, or, where it is to be
    `trained`, takes no new weights."""
    text = config.get_text_config(decoder=True)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal is not None and not _served(causal):
        raise ModelError(
            f"vLLM has no model for {causal.__name__}, the architecture of {origin}: choose another model."
        )
    if trained and text.model_type in _TAKES_NO_WEIGHTS:
        raise ModelError(
            f"vLLM's model of type {text.model_type}, that of {origin}, takes no new weights while it runs, so that it "
            f"cannot be trained here: choose another model."
        )
    if causal is not None and getattr(text, "tie_word_embeddings", False) and not _ties(causal.__name__):
        raise ModelError(
            f"vLLM's {causal.__name__} has an output head of its own alone, and that of {origin} is tied to the embedding "
            f"(tie_word_embeddings=true), so that it would sample from a head nobody trained: choose another model."
        )
    _check_cpu(text, origin, device=device, dtype=dtype)
    for field, passes in _ASSERTED.get(text.model_type, []):
        if not passes(text):
            raise ModelError(f"vLLM cannot sample from {origin}: it does not support {field}={getattr(text, field)!r}.")
    wrong = sorted(size for size in _head_sizes(text) if device == "cpu" and size not in CPU_HEAD_SIZES)
    if wrong:
        raise ModelError(
            f"vLLM's attention on CPUs takes heads of {', '.join(map(str, CPU_HEAD_SIZES))} numbers and {origin} has "
            f"heads of {wrong[0]} (head_dim, or hidden_size / num_attention_heads): choose another model or device=cuda."
        )


def _check_cpu(text: PretrainedConfig, origin: str, *, device: str, dtype: str) -> None:
    if device != "cpu":
        return
    lacking = _CPU_LACKS.get(text.model_type)
    if lacking is not None:
        raise ModelError(
            f"vLLM cannot sample from {origin} here, of type {text.model_type}: {lacking}; choose another model or device=cuda."
        )
    if text.model_type in _CPU_BFLOAT16 and dtype != "bfloat16":
        raise ModelError(
            f"vLLM's kernels on CPUs for {text.model_type}, the type of {origin}, are for bfloat16 alone: "
            f"rollout.dtype=bfloat16, or device=cuda."
        )


def keeps_states(config: PretrainedConfig) -> bool:
    """Whether layers of the model carry a state from token to token, beside attention or in place of it."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    return bool(_STATE_LAYERS & set(layers)) or any(hasattr(text, field) for field in _STATE_FIELDS)


def _head_sizes(text: PretrainedConfig) -> set[int]:
    """Sizes of the heads that the attention kernel sees: none of latent attention, which has kernels of its own."""
    if getattr(text, "kv_lora_rank", None) or not isinstance(getattr(text, "num_attention_heads", None), int):
        return set()
    named = {size for name in _HEAD_SIZES if isinstance(size := getattr(text, name, None), int) and size > 0}
    return named or {text.hidden_size // text.num_attention_heads}


def _served(causal: type) -> bool:
    """Whether vLLM has a model of its own for the class, or runs transformers' code of it."""
    registry = registered_architectures()
    adapts: Any = causal
    return registry is None or causal.__name__ in registry or bool(adapts.is_backend_compatible())


def _ties(architecture: str) -> bool:
    """Whether vLLM's code for the architecture knows of an output head tied to the embedding, or has no head to tie."""
    module = (registered_architectures() or {}).get(architecture)
    models = _models_directory()
    if module is None or models is None:
        return True
    source = (models / f"{module}.py").read_text()
    return "ParallelLMHead(" not in source or "tie_word_embeddings" in source or "tie_weights" in source


@functools.cache
def registered_architectures() -> dict[str, str] | None:
    """The generating architectures in vLLM's registry, with the module of each, read from its source.

    To import it takes ten seconds.
    """
    models = _models_directory()
    if models is None:
        return None
    found: dict[str, str] = {}
    for node in ast.parse((models / "registry.py").read_text()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS"):
            found |= {name: module for name, (module, *_) in ast.literal_eval(node.value).items()}
    return found


def _models_directory() -> Path | None:
    spec = importlib.util.find_spec("vllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model_executor" / "models"
