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


def check_engine(config: PretrainedConfig, *, origin: str, device: str) -> None:
    """ModelError where vLLM has no model for this configuration, or no attention kernel on `device`."""
    text = config.get_text_config(decoder=True)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal is not None and not _served(causal):
        raise ModelError(
            f"vLLM has no model for {causal.__name__}, the architecture of {origin}: choose another model."
        )
    for field, passes in _ASSERTED.get(text.model_type, []):
        if not passes(text):
            raise ModelError(f"vLLM cannot sample from {origin}: it does not support {field}={getattr(text, field)!r}.")
    wrong = sorted(size for size in _head_sizes(text) if device == "cpu" and size not in CPU_HEAD_SIZES)
    if wrong:
        raise ModelError(
            f"vLLM's attention on CPUs takes heads of {', '.join(map(str, CPU_HEAD_SIZES))} numbers and {origin} has "
            f"heads of {wrong[0]} (head_dim, or hidden_size / num_attention_heads): choose another model or device=cuda."
        )


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


@functools.cache
def registered_architectures() -> frozenset[str] | None:
    """The generating architectures in vLLM's registry, read from its source: to import it takes ten seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "model_executor" / "models" / "registry.py"
    names: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS"):
            keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
            names |= {key for key in keys if isinstance(key, str)}
    return frozenset(names)
