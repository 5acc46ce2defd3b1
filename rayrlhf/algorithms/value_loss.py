"""The critic's objective."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rayrlhf.algorithms.masking import masked_mean, masked_sum


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """One micro-batch's share; both add up over the micro-batches of a minibatch."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]


def value_loss(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    token_count: int,
    clip: float | None,
    weights: Float[Tensor, "batch time"] | None = None,
) -> ValueLoss:
    """0.5 * max((V - R)^2, (old + clamp(V - old, -clip, clip) - R)^2), as in the reference code of PPO (baselines, ppo2).

    `weights`, where given, weigh each token's loss: see `masking.sequence_weights`.
    """
    values, old_values, returns = (torch.where(loss_mask, x, 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    each = torch.ones_like(error) if weights is None else weights
    if clip is None:
        loss = 0.5 * masked_sum(each * error, loss_mask) / token_count
        return ValueLoss(loss=loss, clip_fraction=error.new_zeros(()))
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    # Inside the bound, `clipped` differs from `error` by rounding alone.
    active = (((values - old_values).abs() > clip) & (clipped > error)).to(error.dtype)
    return ValueLoss(
        loss=0.5 * masked_sum(each * torch.maximum(error, clipped), loss_mask) / token_count,
        clip_fraction=masked_sum(active, loss_mask).detach() / token_count,
    )


def explained_variance(
    values: Float[Tensor, "batch time"], returns: Float[Tensor, "batch time"], loss_mask: Bool[Tensor, "batch time"]
) -> float:
    """1 - Var(R - V) / Var(R) over valid tokens; 0 where the returns do not vary."""
    residual = torch.where(loss_mask, returns - values, 0.0)
    returns = torch.where(loss_mask, returns, 0.0)

    def variance(x: Tensor) -> float:
        return float(masked_mean((x - masked_mean(x, loss_mask)).square(), loss_mask))

    total = variance(returns)
    return 1.0 - variance(residual) / total if total > 0 else 0.0
