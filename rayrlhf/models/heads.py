"""The one-number heads of reward models and critics."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayrlhf.errors import ModelError

_NAMES = ("score", "classifier")
"""What transformers calls them, by architecture."""


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that turns a hidden state into one number."""
    for name in _NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear) and head.out_features == 1:
            return head
    raise ModelError(
        f"{type(model).__name__} has no linear head of one output called {' or '.join(_NAMES)}: choose an architecture "
        f"that has one, or for a critic one of the critic-free values of ppo.advantage."
    )


def apply_head(head: nn.Linear, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
    """One number per hidden state, in fp32 whatever the precision below: bfloat16 has three digits for a score."""
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.float(), head.weight.float(), bias).squeeze(-1)
