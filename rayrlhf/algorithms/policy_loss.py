"""The clipped policy objective and the terms beside it. Every loss is a sum over valid tokens / the global token count.

`weights`, where given, weigh each token's loss: see `masking.sequence_weights`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rayrlhf.algorithms.kl import Estimator, kl_estimate
from rayrlhf.algorithms.masking import masked_sum
from rayrlhf.algorithms.off_policy import masked_log_ratio


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """One micro-batch's share: `loss`, `clip_fraction` and `approx_kl` add up over the micro-batches of a minibatch."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]
    """k3 estimate of KL(old || new) per token: at the positions of the batch, over the tokens that old would draw there."""
    ratio_max_error: Float[Tensor, ""]
    """Largest |ratio - 1|."""


def policy_loss(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    token_count: int,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    importance: Float[Tensor, "batch time"] | None,
    weights: Float[Tensor, "batch time"] | None = None,
    stale_ratio: Float[Tensor, "batch time"] | None = None,
) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) (Schulman et al. 2017, equation 7).

    Separate bounds follow DAPO (Yu et al. 2025). With `dual_clip` c the objective is at least c * A where A < 0 (Ye et al.
    2020, equation 5). `importance` weighs each token (`off_policy.off_policy_weights`): one of weight 0 has no gradient
    here, and counts in `token_count` and in the figures all the same. `stale_ratio` is old / drawn, the probability of a
    token now over that when an older version drew it: it makes `approx_kl` a mean over old's own tokens, and nothing
    else. The log-ratio is masked before it is exponentiated: 0 * inf in the backward pass would be not a number.
    """
    log_ratio = masked_log_ratio(logprobs, old_logprobs, loss_mask)
    ratio = log_ratio.exp()
    advantages = torch.where(loss_mask, advantages, 0.0)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    objective = torch.minimum(unclipped, clipped)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    weighted = _weighted(_weighted(objective, importance, loss_mask), weights, loss_mask)
    with torch.no_grad():
        inactive = objective != unclipped
        approx_kl = _weighted(torch.expm1(log_ratio) - log_ratio, stale_ratio, loss_mask)
        error = torch.where(loss_mask, (ratio - 1.0).abs(), 0.0)
    return PolicyLoss(
        loss=-masked_sum(weighted, loss_mask) / token_count,
        clip_fraction=masked_sum(inactive.to(ratio.dtype), loss_mask) / token_count,
        approx_kl=masked_sum(approx_kl, loss_mask) / token_count,
        ratio_max_error=error.max() if error.numel() else error.new_zeros(()),
    )


def entropy_bonus(
    entropy: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    token_count: int,
    weights: Float[Tensor, "batch time"] | None = None,
) -> Float[Tensor, ""]:
    """Mean entropy per token, to be subtracted from the loss."""
    return masked_sum(_weighted(entropy, weights, loss_mask), loss_mask) / token_count


def kl_loss(
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    kind: Estimator,
    token_count: int,
    weights: Float[Tensor, "batch time"] | None = None,
) -> Float[Tensor, ""]:
    """Mean KL estimate per token, to be added to the loss."""
    reference = torch.where(loss_mask, ref_logprobs, 0.0)
    policy = torch.where(loss_mask, logprobs, 0.0)
    estimate = kl_estimate(policy, reference, kind=kind)
    return masked_sum(_weighted(estimate, weights, loss_mask), loss_mask) / token_count


def _weighted(x: Tensor, weights: Tensor | None, loss_mask: Tensor) -> Tensor:
    return x if weights is None else x * torch.where(loss_mask, weights, 0.0)
