"""Low-rank adapters (Hu et al. 2022) by peft: put into a model's layers, and merged into plain weights when it is written."""

from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from rayrlhf.errors import ModelError, in_one_line
from rayrlhf.models.heads import scalar_head

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(
    model: PreTrainedModel, *, rank: int, alpha: float, target_modules: list[str] | str, seed: int
) -> PreTrainedModel:
    """The same model, its adapters and its score head alone trainable; at the start it scores as before."""
    head = scalar_head(model)
    name = next(name for name, module in model.named_modules() if module is head)
    settings = PeftConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_modules,
        exclude_modules=[name.split(".")[0]],
        lora_dropout=0.0,
        bias="none",
        task_type="SEQ_CLS",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: Any = inject_adapter_in_model(settings, model)
        except ValueError as error:
            raise ModelError(
                f"reward.lora.target_modules={target_modules} does not fit this model: {in_one_line(error)}."
            ) from error
    for own, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in own or own.startswith(f"{name}."))
    return adapted


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether `add_adapters` was here."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def merged(model: PreTrainedModel, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model: W + scaling x B A for every adapted layer, under the names it had."""
    scalings = {
        name: module.scaling["default"] for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    plain: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if ".lora_" in name:
            continue
        if _BASE not in name:
            plain[name] = value
            continue
        layer, _, kind = name.partition(_BASE)
        if kind == "weight":
            update = state_dict[layer + _UP].float() @ state_dict[layer + _DOWN].float()
            value = (value.float() + scalings[layer] * update).to(value.dtype)
        plain[f"{layer}.{kind}"] = value
    return plain
