"""How large a model is, known before it is loaded."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from rayrlhf.config import ModelConfig
from rayrlhf.errors import ModelError
from rayrlhf.models.classes import scalar_class
from rayrlhf.models.load import UNLOADABLE, read_config, reason_of


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the policy, tied weights once; nothing is allocated."""
    try:
        if model.path is not None:
            config = AutoConfig.from_pretrained(model.path)
        else:
            init = dict(model.init or {})
            config = AutoConfig.for_model(init.pop("model_type"), **init, vocab_size=model.vocab_size)
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, StrictDataclassError) as error:
        origin = f"model.path={model.path}" if model.path is not None else f"model.init={model.init}"
        hint = _directory_hint(model.path)
        raise ModelError(f"No causal language model can be made from {origin}: {reason_of(error)}{hint}.") from error


def count_reward_parameters(base: str) -> int:
    """Parameters of a reward model on the backbone `base`; nothing is allocated."""
    role = "reward model backbone"
    config = read_config(base, role=role, num_labels=1)
    try:
        with torch.device("meta"):
            return sum(
                parameter.numel() for parameter in scalar_class(config, "sequence")._from_config(config).parameters()
            )
    except UNLOADABLE as error:
        raise ModelError(f"The {role} {base} cannot be made: {reason_of(error)}.") from error


def _directory_hint(path: str | None) -> str:
    return f" (the directory {path} does not exist here)" if path is not None and not Path(path).is_dir() else ""
