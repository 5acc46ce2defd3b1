"""Taking the advantage of length out of preferences, by weight."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayrlhf.types import PreferenceExample

_STRATA = 8


def balance_lengths(rows: Sequence[PreferenceExample], *, strength: float) -> list[PreferenceExample]:
    """The rows with pair weights under which, among pairs of like length difference, the longer wins half of the weight.

    The strict pairs of all rows are put into strata of equal size by |difference in tokens|, counted before the cut; in
    each, those that the longer response wins and those that it loses get the same total (inverse-propensity weights to
    the power `strength`; the mean stays 1). Pairs of equal length keep their weight.
    """
    longer_by = [_longer_by(row) for row in rows]
    differences = np.concatenate([own[~np.isnan(own)] for own in longer_by]) if rows else np.zeros(0)
    uneven = np.flatnonzero(differences)
    if not strength or not len(uneven):
        return list(rows)
    factors = np.ones(len(differences))
    by_size = uneven[np.argsort(np.abs(differences[uneven]), kind="stable")]
    for stratum in np.array_split(by_size, min(_STRATA, len(by_size))):
        longer_wins = differences[stratum] > 0
        share = longer_wins.mean()
        if 0.0 < share < 1.0:
            factors[stratum] = np.where(longer_wins, 0.5 / share, 0.5 / (1.0 - share)) ** strength
    factors[uneven] /= factors[uneven].mean()
    ends = np.cumsum([np.count_nonzero(~np.isnan(own)) for own in longer_by])
    return [_weighted(row, own, part) for row, own, part in zip(rows, longer_by, np.split(factors, ends), strict=False)]


def _longer_by(row: PreferenceExample) -> np.ndarray:
    """[K, K]: tokens by which response i is longer than response j, where i is the better; NaN elsewhere."""
    lengths, ranks = np.array(row.lengths, dtype=float), np.array(row.ranks)
    better = (ranks[:, None] < ranks[None, :]) & (ranks[:, None] >= 0)
    return np.where(better, lengths[:, None] - lengths[None, :], np.nan)


def _weighted(row: PreferenceExample, longer_by: np.ndarray, factors: np.ndarray) -> PreferenceExample:
    weights = np.ones(longer_by.shape)
    weights[~np.isnan(longer_by)] = factors
    return replace(row, pair_weights=weights)
