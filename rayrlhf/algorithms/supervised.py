"""The objectives of the supervised stages."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rayrlhf.algorithms.masking import masked_sum


def token_nll(
    logprobs: Float[Tensor, "batch time"], loss_mask: Bool[Tensor, "batch time"], *, token_count: int
) -> Float[Tensor, ""]:
    """Negative log-likelihood, a sum over the trained tokens / the global token count."""
    return -masked_sum(logprobs, loss_mask) / token_count


def bradley_terry(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], *, pair_count: int
) -> Float[Tensor, ""]:
    """-log sigmoid(chosen - rejected), as softplus so that no difference overflows; a sum / the global pair count.

    Bradley and Terry 1952; Stiennon et al. 2020, section 3.4. At a difference of 0 it is ln 2.
    """
    return torch.nn.functional.softplus(rejected - chosen).sum() / pair_count


def centering(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], *, pair_count: int
) -> Float[Tensor, ""]:
    """(chosen + rejected)^2, which fixes the origin that Bradley-Terry leaves free (Eisenstein et al. 2023, equation 2)."""
    return (chosen + rejected).square().sum() / pair_count
