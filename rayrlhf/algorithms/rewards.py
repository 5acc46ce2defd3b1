"""From one score a response to one reward a token."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RunningMoments:
    """Count, mean and summed squared deviation of every value seen so far."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def update(self, values: np.ndarray) -> "RunningMoments":
        """The moments with `values` added (Chan et al. 1979, pairwise combination)."""
        values = np.asarray(values, dtype=np.float64)
        count = self.count + values.size
        delta = float(values.mean()) - self.mean
        m2 = float(((values - values.mean()) ** 2).sum())
        return RunningMoments(
            count=count,
            mean=self.mean + delta * values.size / count,
            m2=self.m2 + m2 + delta**2 * self.count * values.size / count,
        )

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before there are two values."""
        return float(np.sqrt(self.m2 / self.count)) if self.count > 1 else 0.0


def normalize_scores(
    scores: Float[Tensor, " batch"], moments: RunningMoments | None, *, clip: float | None
) -> Float[Tensor, " batch"]:
    """(score - mean) / std of `moments` where given, then clipped to [-clip, clip] where given."""
    if moments is not None:
        scores = (scores - moments.mean) / (moments.std + 1e-8)
    return scores if clip is None else scores.clamp(-clip, clip)


def penalize_truncated(
    scores: Float[Tensor, " batch"], truncated: Bool[Tensor, " batch"], *, penalty: float
) -> Float[Tensor, " batch"]:
    """Subtract `penalty` from the score of each response that was cut before its end-of-sequence token."""
    return scores - penalty * truncated.to(scores.dtype)


def token_rewards(
    scores: Float[Tensor, " batch"],
    kl: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    kl_coef: float,
) -> Float[Tensor, "batch time"]:
    """r_t = -kl_coef * kl_t, plus the score at the last response token (Ouyang et al. 2022, equation 2).

    A row without valid tokens gets no reward.
    """
    rewards = torch.where(loss_mask, -kl_coef * kl, 0.0)
    time = loss_mask.shape[1]
    last = time - 1 - loss_mask.flip(1).to(torch.int8).argmax(dim=1)
    rows = loss_mask.any(dim=1)
    rewards[rows, last[rows]] += scores[rows].to(rewards.dtype)
    return rewards
