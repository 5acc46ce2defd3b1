"""How far a reward model is from home: its accuracy on the policy's own pairs, by update, beside that on its own data."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayrlhf.algorithms import preference_metrics as metrics
from rayrlhf.data.schema import Preference
from rayrlhf.reward.judge import Pairs, pairs_of, score_preferences
from rayrlhf.reward.model import RewardModel

Figures = dict[str, Any]
"""pairs, and accuracy with its 95 % interval (low, high)."""


def accuracy_on(model: RewardModel, rows: Sequence[Preference], *, max_length: int) -> Figures | None:
    """Over all strict pairs of the rows; None where there are none."""
    return _figures(_pairs(model, rows, max_length)) if rows else None


def accuracy_by_subset(
    model: RewardModel, rows: Sequence[Preference], subsets: Sequence[str], *, max_length: int
) -> list[Figures | None]:
    """The same for each of the subsets."""
    pairs = _pairs(model, rows, max_length)
    return [_figures(pairs, pairs.subset == name) for name in subsets]


def _pairs(model: RewardModel, rows: Sequence[Preference], max_length: int) -> Pairs:
    # As far as the model reads, as it scores the policy's responses; how many rows may be bad is settled before.
    return pairs_of(score_preferences(model, rows, max_length=max_length, cut=True, max_bad_rows=1.0))


def _figures(pairs: Pairs, where: np.ndarray | None = None) -> Figures | None:
    difference, cluster = (column if where is None else column[where] for column in (pairs.difference, pairs.cluster))
    if not len(difference):
        return None
    interval = metrics.accuracy(difference, cluster)
    return {"pairs": len(difference), "accuracy": interval.value, "low": interval.low, "high": interval.high}
