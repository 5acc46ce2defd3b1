"""Scores from comparisons, against closed forms and another model's optimiser."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression

from rayrlhf.algorithms.bradley_terry import bradley_terry


def test_two_are_apart_by_the_log_odds_where_the_prior_is_flat() -> None:
    for p in (0.5, 0.73, 0.02):
        scores = bradley_terry(np.array([[0.0, p], [1.0 - p, 0.0]]), prior_std=1e6)
        assert scores[0] - scores[1] == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_one_that_always_wins_is_as_far_ahead_as_the_prior_allows() -> None:
    """The maximum over d of log sigmoid(d) - d^2 / (4 std^2) is where sigmoid(-d) = d / (2 std^2)."""
    for std in (0.5, 3.0, 30.0):
        scores = bradley_terry(np.array([[0.0, 1.0], [0.0, 0.0]]), prior_std=std)
        wanted = brentq(lambda d, std=std: 1 / (1 + math.exp(d)) - d / (2 * std**2), 0.0, 100.0, xtol=1e-12)
        assert scores[0] - scores[1] == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_many_score_as_a_ridge_logistic_regression_of_the_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, std = int(rng.integers(3, 9)), float(rng.uniform(0.7, 5.0))
    rows, labels, weights = [], [], []
    wins = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            count, p = float(rng.integers(0, 3)), float(rng.uniform(0, 1) if seed else i < j)
            wins[i, j] += count * p
            wins[j, i] += count * (1 - p)
            row = np.zeros(n)
            row[i], row[j] = 1.0, -1.0
            rows += [row, row]
            labels += [1, 0]
            weights += [count * p, count * (1 - p)]
    model = LogisticRegression(C=std**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
    wanted = model.fit(np.array(rows), labels, sample_weight=weights).coef_[0]
    found = bradley_terry(wins, prior_std=std)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found.sum() == pytest.approx(0.0, abs=1e-9)


def test_what_was_never_compared_has_score_zero_and_many_comparisons_outweigh_the_prior() -> None:
    assert bradley_terry(np.zeros((3, 3))).tolist() == [0.0, 0.0, 0.0]
    scores = bradley_terry(np.array([[0.0, 7e5], [3e5, 0.0]]))
    assert scores[0] - scores[1] == pytest.approx(math.log(7 / 3), abs=1e-4)
