"""Estimates of KL(policy || reference) from samples of the policy, and the coefficient that weighs them."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
LOG_RATIO_BOUND = 20.0
"""exp(20) is 5e8: any larger ratio is a fault of arithmetic, and its gradient must stay finite."""


def kl_estimate(
    logprobs: Float[Tensor, "batch time"], ref_logprobs: Float[Tensor, "batch time"], *, kind: Estimator
) -> Float[Tensor, "batch time"]:
    """Per-token estimate with log r = ref - policy (Schulman 2020, "Approximating KL divergence").

    k1 = -log r, unbiased; k2 = (log r)^2 / 2, biased and of low variance; k3 = r - 1 - log r, unbiased and positive.
    """
    log_ratio = ref_logprobs - logprobs
    match kind:
        case "k1":
            return -log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            bounded = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
            return torch.expm1(bounded) - bounded


def adapt_kl_coef(coef: float, *, kl: float, target: float, horizon: int, samples: int) -> float:
    """One step of the proportional controller of Ziegler et al. 2019, section 2.2.

    e = clip(kl / target - 1, -0.2, 0.2); the coefficient is multiplied by 1 + e * samples / horizon.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * samples / horizon)
