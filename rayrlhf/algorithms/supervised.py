"""The objective of supervised fine-tuning."""

from jaxtyping import Bool, Float
from torch import Tensor

from rayrlhf.algorithms.masking import masked_sum


def token_nll(
    logprobs: Float[Tensor, "batch time"], loss_mask: Bool[Tensor, "batch time"], *, token_count: int | float
) -> Float[Tensor, ""]:
    """Negative log-likelihood, a sum over the trained tokens / the global token count."""
    return -masked_sum(logprobs, loss_mask) / token_count
