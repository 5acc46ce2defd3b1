"""Classes with a scalar head: transformers' own, or one made of its parts for any other decoder."""

import copy
import dataclasses
import functools
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from rayrlhf.errors import ModelError

Kind = Literal["sequence", "token"]
"""What the head scores: whole sequences (reward models) or every token (critics)."""

_STOCK: dict[Kind, Any] = {
    "sequence": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
}
_GENERIC: dict[Kind, type] = {"sequence": GenericForSequenceClassification, "token": GenericForTokenClassification}
_SUFFIX: dict[Kind, str] = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}


def has_stock_class(config: PretrainedConfig, kind: Kind) -> bool:
    """Whether transformers' auto classes read a model of this configuration with such a head."""
    return type(config) in _STOCK[kind]


def unread_by_stock_tools(config: PretrainedConfig, kind: Kind) -> str | None:
    """One sentence where `has_stock_class` is not so."""
    if has_stock_class(config, kind):
        return None
    what, auto = {
        "sequence": ("reward model", "AutoModelForSequenceClassification"),
        "token": ("critic", "AutoModelForTokenClassification"),
    }[kind]
    return (
        f"transformers has no {auto} for {config.model_type}: the {what} is a backbone with a head of this program's, "
        f"which reads it; stock transformers does not."
    )


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """transformers' causal language model of a configuration; ModelError where it has none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"transformers has no causal language model of the type {config.model_type}: choose a decoder."
        )
    found: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether a family that may be either is set to read a text in both directions."""
    return getattr(config, "is_decoder", True) is False and "is_decoder" in {f.name for f in dataclasses.fields(config)}


def reads_forward(config: PretrainedConfig) -> bool:
    """Whether a token sees none of those after it."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_encoder(config)


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration that the causal model takes: of several modalities the text model's, as the auto classes do it."""
    text = config.get_text_config(decoder=True)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return text if causal is not None and causal.config_class is type(text) else config


def scalar_class(config: PretrainedConfig, kind: Kind) -> type[PreTrainedModel]:
    """The class of a reward model or critic on this configuration's backbone; ModelError where there is no decoder."""
    if has_stock_class(config, kind):
        stock: type[PreTrainedModel] = _STOCK[kind][type(config)]
        return stock
    decoder: Any = causal_class(config)
    return _made(decoder, kind, _backbone_name(decoder, config))


def _backbone_name(causal: Any, config: PretrainedConfig) -> str:
    """What the causal model calls its backbone: its checkpoints begin with it, where `base_model_prefix` says another."""
    kind = MODEL_MAPPING.get(type(config), None)
    with torch.device("meta"):
        children = causal._from_config(copy.deepcopy(config)).named_children()
    prefix: str = causal.base_model_prefix
    names = [name for name, child in children if kind is not None and isinstance(child, kind)]
    return names[0] if names else prefix


@functools.cache
def _made(causal: type[PreTrainedModel], kind: Kind, backbone: str) -> type[PreTrainedModel]:
    """What transformers writes out for most decoders: a generic head on the family's pretrained base.

    The backbone keeps the name it has in the causal model, so that its checkpoints load; vLLM reads such a reward model
    by the name of its class.
    """
    generic: Any = _GENERIC[kind]
    family = next(c for c in causal.__mro__ if c.__name__.endswith("PreTrainedModel"))
    name = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + _SUFFIX[kind]

    def initialise(self: Any, config: PretrainedConfig) -> None:
        generic.__init__(self, config)
        # The last hidden state of OPT is as wide as its embeddings.
        width = getattr(config.get_text_config(), "word_embed_proj_dim", self.score.in_features)
        if width != self.score.in_features:
            self.score = nn.Linear(width, config.num_labels, bias=self.score.bias is not None)

    body = {"__init__": initialise, "base_model_prefix": backbone, "__module__": __name__}
    made: type[PreTrainedModel] = type(name, (generic, family), body)
    return made
