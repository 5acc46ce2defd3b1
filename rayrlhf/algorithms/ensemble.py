"""From the scores of several reward models to one reward, and how far they agree."""

from typing import Literal

import numpy as np
from jaxtyping import Float

Combination = Literal["mean", "min", "mean_std", "mean_var", "soft_min"]


def standardized(
    scores: Float[np.ndarray, "n members"], mean: Float[np.ndarray, " members"], std: Float[np.ndarray, " members"]
) -> Float[np.ndarray, "n members"]:
    """Each member on the scale of the same reference set: differences alone fix a member's scores up to a shift."""
    return (scores - mean) / np.maximum(std, 1e-6)


def combine(
    scores: Float[np.ndarray, "n members"], how: Combination, *, penalty: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """One score a row from standardised members, and their spread (population standard deviation).

    mean; min, the worst case; mean - penalty x std; mean - penalty x variance (Coste et al. 2024, section 4).
    soft_min: -log(mean exp(-penalty x r)) / penalty, the certainty equivalent of an exponential utility (Pratt 1964): the
    mean at 0, the worst case without bound, and for a small penalty mean - penalty / 2 x variance.
    """
    mean, spread = scores.mean(1), scores.std(1)
    if how == "min":
        return scores.min(1), spread
    if how == "mean_std":
        return mean - penalty * spread, spread
    if how == "mean_var":
        return mean - penalty * spread**2, spread
    if how == "soft_min" and penalty > 0:
        worst = scores.min(1)
        above = np.exp(-penalty * (scores - worst[:, None]))
        return worst - np.log(above.mean(1)) / penalty, spread
    return mean, spread
