"""Taking the advantage of length out of preference pairs, by weight."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayrlhf.types import PreferenceExample

_STRATA = 8


def balance_lengths(rows: Sequence[PreferenceExample], *, strength: float) -> list[PreferenceExample]:
    """The rows with weights under which, among pairs of like length difference, the longer wins half of the weight.

    Pairs are put into strata of equal size by |difference in tokens|; in each, those that the longer response wins and
    those that it loses get the same total (inverse-propensity weights to the power `strength`; the mean stays 1). Rows
    that are no strict pair, and pairs of equal length, keep their weight.
    """
    differences = np.array([_longer_by(row) for row in rows], dtype=float)
    uneven = np.flatnonzero(np.nan_to_num(differences))
    if not strength or not len(uneven):
        return list(rows)
    factors = np.ones(len(rows))
    by_size = uneven[np.argsort(np.abs(differences[uneven]), kind="stable")]
    for stratum in np.array_split(by_size, min(_STRATA, len(by_size))):
        longer_wins = differences[stratum] > 0
        share = longer_wins.mean()
        if 0.0 < share < 1.0:
            factors[stratum] = np.where(longer_wins, 0.5 / share, 0.5 / (1.0 - share)) ** strength
    factors[uneven] /= factors[uneven].mean()
    return [replace(row, weight=row.weight * factor) for row, factor in zip(rows, factors.tolist(), strict=True)]


def _longer_by(row: PreferenceExample) -> float:
    """Tokens by which the better response of a pair is longer; NaN for what is no strict pair."""
    if len(row.sequences) != 2 or sorted(row.ranks) != [0, 1]:
        return float("nan")
    return float(len(row.sequences[row.ranks.index(0)]) - len(row.sequences[row.ranks.index(1)]))
