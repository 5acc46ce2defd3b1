"""Estimates of KL(policy || reference) from samples of the policy, and the coefficient that weighs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
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


@dataclass(frozen=True, kw_only=True)
class SampledKL:
    """KL(policy || reference) as a batch of responses shows it."""

    response: float
    """Nats a response."""
    token: float
    """Nats a token: `response` over the mean length of the policy's responses."""


def sampled_kl(k1: Sequence[np.ndarray], log_weights: Sequence[np.ndarray]) -> SampledKL | None:
    """KL(policy || reference) from responses that the policy, or an older version of it, has drawn.

    `k1` holds [R] log policy - log reference of each response's tokens; `log_weights` [R] log policy - log drawn, the
    token's log-probability now less that under the version that drew it, and 0 where that version is the policy. The sum
    over positions t of E_drawn[w_1 ... w_t k1_t] is the KL of whole responses, since tokens after t have weights of mean 1
    (Precup et al. 2000, per-decision importance sampling); here the weights of each position are divided by their sum.
    None where the weights leave too few effective responses (Kong 1992) to tell anything: fewer than a tenth of them, or
    than 8 (than half, of a small batch). Without weights this is the mean, at any size.
    """
    rows, longest = len(k1), max(len(row) for row in k1)
    values, logs, drawn = (np.zeros((rows, longest)) for _ in range(3))
    for i, (own, weight) in enumerate(zip(k1, log_weights, strict=True)):
        values[i, : len(own)], logs[i, : len(own)], drawn[i, : len(own)] = own, weight, 1.0
    logs = logs.cumsum(axis=1)
    weights = np.exp(logs - logs.max(axis=0))
    weights /= weights.sum(axis=0)
    effective = 1.0 / float(np.square(weights[:, -1]).sum())
    if effective < max(rows / 10, min(8, rows / 2)) * (1 - 1e-9):
        return None
    response = float((weights * values).sum())
    return SampledKL(response=response, token=response / float((weights * drawn).sum()))


class KLCoefficient:
    """The weight of the KL: the configured coefficient, times what the guard and an adaptive controller have made of it.

    The factors are state; the configured coefficient is not, so that a resumed run pulls as its configuration says.
    """

    def __init__(self, configured: float, *, adaptive: bool = False) -> None:
        self._configured = configured
        self._adaptive = adaptive
        self._adapted = self._raised = 1.0

    @property
    def value(self) -> float:
        """What the KL weighs now."""
        return self._configured * self._raised * (self._adapted if self._adaptive else 1.0)

    def adapt(self, *, kl: float, target: float, horizon: int, samples: int) -> None:
        """One step of the proportional controller of Ziegler et al. 2019, section 2.2; nothing where it is not adaptive.

        e = clip(kl / target - 1, -0.2, 0.2); the coefficient is multiplied by 1 + e * samples / horizon.
        """
        if self._adaptive:
            self._adapted *= 1.0 + min(max(kl / target - 1.0, -0.2), 0.2) * samples / horizon

    def scale(self, factor: float) -> None:
        """Multiply it for good, as the guard does."""
        self._raised *= factor

    def state_dict(self) -> dict[str, float]:
        """The factors."""
        return {"adapted": self._adapted, "raised": self._raised}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self._adapted, self._raised = state["adapted"], state["raised"]
