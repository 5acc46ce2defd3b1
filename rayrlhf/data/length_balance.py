"""Taking the advantage of length out of preferences, by weight."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from rayrlhf.data.rows import Rows
from rayrlhf.types import PreferenceExample

_STRATA = 8


def balance_lengths(rows: Rows[PreferenceExample], *, strength: float) -> Rows[PreferenceExample]:
    """The rows with pair weights under which, among pairs of like length difference, the longer wins half of the weight.

    The strict pairs of all rows are put into strata of equal size by |difference in tokens|, counted before the cut; in
    each, those that the longer response wins and those that it loses get the same total (inverse-propensity weights to
    the power `strength`; the mean stays 1). Pairs of equal length keep their weight.
    """
    if not strength or not len(rows):
        return rows
    better, lengths = _better(rows.column("ranks")), rows.column("lengths").astype(float)
    differences = (lengths[:, :, None] - lengths[:, None, :])[better]
    uneven = np.flatnonzero(differences)
    if not len(uneven):
        return rows
    factors = np.ones(len(differences))
    by_size = uneven[np.argsort(np.abs(differences[uneven]), kind="stable")]
    for stratum in np.array_split(by_size, min(_STRATA, len(by_size))):
        longer_wins = differences[stratum] > 0
        share = longer_wins.mean()
        if 0.0 < share < 1.0:
            factors[stratum] = np.where(longer_wins, 0.5 / share, 0.5 / (1.0 - share)) ** strength
    factors[uneven] /= factors[uneven].mean()
    ends = np.cumsum([0, *better.sum((1, 2))])

    def weighted(row: PreferenceExample, i: int) -> PreferenceExample:
        own = _better(np.array([row.ranks]))[0]
        weights = np.ones(own.shape)
        weights[own] = factors[ends[i] : ends[i + 1]]
        return replace(row, pair_weights=weights)

    return rows.changed(weighted)


def _better(ranks: Int[np.ndarray, "rows k"]) -> Bool[np.ndarray, "rows k k"]:
    """Where response i of a row is better than response j."""
    return (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] >= 0)
