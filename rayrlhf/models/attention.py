"""Attention as a configuration asks for it: the fields known by name, and the implementation that honours them."""

import dataclasses
import functools
import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from rayrlhf.errors import ModelError

SOFT_CAPPED = frozenset({"gemma2", "vaultgemma", "t5gemma"})
"""Architectures whose modelling code caps attention logits; sdpa takes their cap and drops it, eager applies it."""

_CAP = "attn_logit_softcapping"
_BIDIRECTIONAL = "use_bidirectional_attention"

HONOURED = frozenset(
    {
        # Scores: scale, clamp, normalisation of queries and keys, and a temperature by position.
        "attention_multiplier", "attention_in_multiplier", "attention_out_multiplier", "key_multiplier",
        "query_pre_attn_scalar", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "attn_scale",
        "attn_temperature_tuning", "attention_value_scale", "clip_qkv", "qk_layernorm", "use_qk_norm", "use_qkv_bias",
        # Which keys are seen: windows, chunks, patterns over layers, learnt sinks, and biases by distance.
        "sliding_window", "use_sliding_window", "sliding_window_size", "sliding_window_pattern",
        "_sliding_window_pattern", "prefix_dense_sliding_window_pattern", "max_window_layers", "window_size",
        "keep_window_size", "attention_window_size", "attention_chunk_size", "local_attention", "layer_types",
        "attention_types", "attention_layers", "attn_config", "attn_layers", "attn_layer_indices", "attn_layer_offset",
        "attn_layer_period", "full_attn_idxs", "global_attn_every_n_layers", "learnable_sink_init", "alibi",
        "mlp_layer_types", "linear_attn_config", "shared_expert_sink", "hc_sinkhorn_iters",
        # Parameters and their shapes.
        "attention_bias", "attention_out_bias", "attention_k_eq_v", "attention_head_dim", "attention_head_size",
        "attention_hidden_size", "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "num_ln_in_parallel_attn",
        "parallel_attn", "use_shared_attention_adapter", "attn_output_gate",
        # Linear attention, and what else is the architecture's own.
        "full_attn_alpha_factor", "full_attn_beta_factor", "linear_attn_alpha_factor", "linear_attn_beta_factor",
        "attention_type", "attn_type", "lsh_attn_chunk_length", "local_attn_chunk_length", "cross_attn_k",
    }
)  # fmt: skip
"""Fields that change attention and that every implementation transformers chooses for their architecture honours.

Held by a test to the configurations of the pinned transformers: each of theirs is here, or below, or handled by name.
"""

_ATTENTION = re.compile(
    r"attn|attention|soft_?cap|alibi|sink|window|(^|_)qkv?(_|$)|query_pre|^layer_types$|rope_layers"
)
_HARMLESS = re.compile(
    r"drop|flash|implementation|^output_attentions$|heads|cross_attention|softmax_in_fp32|upcast|autoset|kernel"
    r"|^(final|router|moe_router)_logit_softcapping$|^no_rope_layers$|^max_window_layers$"
)
"""Dropout is off, implementations are chosen here, and counts of heads are held against the weights' shapes."""


def implementation(config: PretrainedConfig) -> str | None:
    """The attention to load a model with: eager where sdpa would drop a feature, None for the architecture's own choice."""
    return "eager" if any(getattr(part, _CAP, None) for part in _parts(config)) else None


def check_attention(config: PretrainedConfig, *, path: str, role: str) -> None:
    """ModelError for a field that changes attention and that nothing here honours: never trained on as if it were not set."""
    for part in _parts(config):
        kind: Any = type(part)
        declared = {field.name for field in dataclasses.fields(part)} | set(part.attribute_map) | _derived(kind)
        for name, value in _settings(part).items():
            if not _ATTENTION.search(name) or _HARMLESS.search(name) or _is_off(part, name, value):
                continue
            reason = _objection(part, name, declared=name in declared)
            if reason is not None:
                raise ModelError(
                    f"The {role} {path} sets {name}={_short(value)} in its config.json, {reason}; set it to null if the "
                    f"model was trained without it, or choose another model."
                )


def _objection(config: PretrainedConfig, name: str, *, declared: bool) -> str | None:
    model_type = config.model_type
    if not declared:
        return f"which transformers' {model_type} does not know and would ignore, though it looks like a change of attention"
    if name == _CAP:
        return None if model_type in SOFT_CAPPED else f"which transformers' {model_type} reads and does not apply"
    if name == _BIDIRECTIONAL:
        return "with which it sees the tokens it is to predict"
    if name in HONOURED or _default(config, name) == getattr(config, name):
        return None
    return "which looks like a change of attention that is not known here, and could be dropped in silence"


@functools.cache
def _derived(kind: type[PretrainedConfig]) -> frozenset[str]:
    """What a configuration works out by itself and writes down beside its fields."""
    try:
        return frozenset(vars(kind()))
    except (ValueError, TypeError, StrictDataclassError):  # one that has no defaults
        return frozenset()


def _default(config: PretrainedConfig, name: str) -> Any:
    field = next((field for field in dataclasses.fields(config) if field.name == name), None)
    return None if field is None else field.default


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configuration, and that of its text model where it is one of several modalities."""
    text = config.get_text_config(decoder=True)
    return [config] if text is config else [config, text]


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_attn_impl")}


def _is_off(config: PretrainedConfig, name: str, value: Any) -> bool:
    if name == "sliding_window" and getattr(config, "use_sliding_window", None) is False:
        return True
    if name == _BIDIRECTIONAL:
        return value in (None, False, "vision")
    if name.endswith("layer_types") and isinstance(value, (list, tuple)):
        return set(value) <= {"full_attention"}
    return value is None or value is False or value in (0, 0.0, "", [], {}, ())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
