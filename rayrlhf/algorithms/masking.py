"""Sums and means over valid tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Sum of the valid entries."""
    return torch.where(mask, x, 0.0).sum()


def masked_mean(x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Mean of the valid entries; 0 where there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def whiten(
    x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], *, shift_mean: bool = True
) -> Float[Tensor, "batch time"]:
    """Variance 1 (and mean 0 with `shift_mean`) over the valid entries; 0 elsewhere."""
    mean = masked_mean(x, mask)
    variance = masked_mean((torch.where(mask, x, mean) - mean) ** 2, mask)
    centred = torch.where(mask, x, mean) - mean
    scaled = centred * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


def sequence_weights(
    mask: Bool[Tensor, "batch time"], *, token_count: int, row_count: int
) -> Float[Tensor, "batch time"]:
    """token_count / (row_count * tokens of the row) at each valid token; 0 elsewhere.

    A mean over `token_count` tokens with these weights is the mean over `row_count` responses of the mean over each one's
    tokens (Shao et al. 2024, equation 3). Both counts are of the whole minibatch, of which `mask` may be a part.
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(mask, token_count / (row_count * lengths), 0.0)
