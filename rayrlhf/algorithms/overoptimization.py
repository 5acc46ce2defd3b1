"""How far from the reference a proxy can be optimised before what it stands for falls."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class RewardCurve:
    """R(d) = d (alpha - beta log d), with d = sqrt(KL(policy || reference)) (Gao et al. 2023, section 3)."""

    alpha: float
    beta: float

    def at(self, distance: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The gain over the reference at each distance; 0 at distance 0."""
        safe = np.maximum(distance, 1e-12)
        return np.where(distance > 0, safe * (self.alpha - self.beta * np.log(safe)), 0.0)

    @property
    def peak(self) -> float | None:
        """The distance of the greatest gain, exp(alpha / beta - 1); None where the curve rises without end."""
        return math.exp(min(self.alpha / self.beta - 1.0, 700.0)) if self.beta > 0 else None


def fit_reward_curve(distance: Float[np.ndarray, " n"], gain: Float[np.ndarray, " n"]) -> RewardCurve | None:
    """Least squares, which is linear in alpha and beta; None for fewer than three distances above 0."""
    away = distance > 0
    d, y = distance[away], gain[away]
    if len(np.unique(d)) < 3:
        return None
    design = np.stack([d, -d * np.log(d)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(design, y, rcond=None)
    return RewardCurve(alpha=float(alpha), beta=float(beta))


def standard_errors_below(now: Float[np.ndarray, " n"], peak: Float[np.ndarray, " n"]) -> float:
    """How far the mean lies below that of `peak` on the same prompts, in standard errors of the paired difference.

    0 where it is not below; infinite where every prompt fell by the same amount.
    """
    difference = peak - now
    mean = float(difference.mean())
    if mean <= 0:
        return 0.0
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return mean / error if error > 0 else math.inf
