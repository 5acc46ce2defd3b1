"""The one-number heads of reward models and critics."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayrlhf.errors import ModelError

HEADS_FILE = "heads/heads.safetensors"
"""Below the model that is their mean: vLLM reads every weight file beside a configuration as the model's."""
_NAMES = ("score", "classifier", "classifier.out_proj")
"""What transformers calls them, by architecture."""


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that turns a hidden state into one number; or into one a head, while several are trained."""
    modules = dict(model.named_modules())
    for name in _NAMES:
        head = modules.get(name)
        if isinstance(head, nn.Linear):
            return head
    raise ModelError(
        f"{type(model).__name__} has no linear head of one output called {', '.join(_NAMES[:-1])} or {_NAMES[-1]}: choose "
        f"an architecture that has one, or for a critic one of the critic-free values of ppo.advantage."
    )


def reads_last_token(model: PreTrainedModel) -> bool:
    """Whether the score is the head's on the last token's hidden state (decoders), not on a pooled one (encoders)."""
    return isinstance(getattr(model, "score", None), nn.Linear)


def apply_head(head: nn.Linear, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "..."]:
    """One number per hidden state and head, in fp32 whatever the precision below: bfloat16 has three digits for a score.

    Of a single head the last dimension is left out.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.float(), head.weight.float(), bias).squeeze(-1)


def put_heads(model: PreTrainedModel, heads: Float[Tensor, "heads hidden"]) -> None:
    """Put several trained heads in the place of their mean."""
    mean = scalar_head(model)
    many = nn.Linear(mean.in_features, heads.shape[0], bias=False, dtype=mean.weight.dtype)
    with torch.no_grad():
        many.weight.copy_(heads)
    name = next(name for name, module in model.named_modules() if module is mean)
    setattr(model, name, many)
