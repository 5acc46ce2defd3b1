"""Figures of judgement against scikit-learn, closed forms and brute force."""

import itertools
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from rayrlhf.algorithms import preference_metrics as metrics


def sample(count: int = 4000, *, slope: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Score differences of pairs put in the labelled order, the label drawn from sigmoid(slope x difference)."""
    rng = np.random.default_rng(seed)
    first_over_second = rng.normal(scale=2.0, size=count)
    preferred = rng.uniform(size=count) < metrics.sigmoid(slope * first_over_second)
    return np.where(preferred, first_over_second, -first_over_second), np.ones(count)


def test_equal_scores_count_half_and_not_at_all_when_strict() -> None:
    difference = np.array([1.0, 0.0, -1.0, 2.0])
    assert metrics.accuracy(difference, np.arange(4)).value == 2.5 / 4
    assert metrics.strict_accuracy(difference) == 0.5


def test_the_interval_knows_that_pairs_of_one_prompt_go_together() -> None:
    rng = np.random.default_rng(1)
    per_prompt = np.repeat(rng.choice([-1.0, 1.0], size=100, p=[0.3, 0.7]), 20)
    alone = metrics.accuracy(per_prompt, np.arange(2000))
    clustered = metrics.accuracy(per_prompt, np.repeat(np.arange(100), 20))
    assert alone.value == clustered.value
    wide, narrow = clustered.high - clustered.low, alone.high - alone.low
    assert narrow == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 2000), rel=0.25)
    assert wide == pytest.approx(narrow * math.sqrt(20), rel=0.25)


def test_any_rule_of_length_has_a_balanced_accuracy_of_one_half() -> None:
    longer_by = np.array([5.0] * 9 + [-3.0])
    assert metrics.longer_accuracy(longer_by) == 0.9
    for rule in (longer_by, -longer_by, np.zeros(10)):
        assert metrics.balanced_accuracy(rule, longer_by) == 0.5
    assert math.isnan(metrics.balanced_accuracy(longer_by, np.ones(10)))


def test_likelihood_and_brier_agree_with_scikit_learn() -> None:
    difference, probability = sample(500)
    side = np.random.default_rng(2).integers(2, size=500)
    stated = metrics.sigmoid(np.where(side == 1, difference, -difference))
    assert metrics.nll(difference, probability) == pytest.approx(log_loss(side, stated))
    assert metrics.brier(difference, probability) == pytest.approx(brier_score_loss(side, stated))


@pytest.mark.parametrize("slope", [0.25, 1.0, 4.0])
def test_the_temperature_is_that_of_a_logistic_regression(slope: float) -> None:
    difference, probability = sample(slope=slope)
    sides = np.random.default_rng(3).integers(2, size=len(difference)) * 2 - 1
    model = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10).fit((sides * difference)[:, None], sides)
    fitted = metrics.fit_temperature(difference, probability)
    assert fitted == pytest.approx(1.0 / float(model.coef_[0, 0]), rel=0.03)
    assert fitted == pytest.approx(1.0 / slope, rel=0.15)


def test_calibrated_scores_have_a_small_error_and_scaled_ones_a_large_one() -> None:
    difference, probability = sample(20_000)
    assert metrics.reliability(difference, probability).ece < 0.02
    assert metrics.reliability(5 * difference, probability).ece > 0.1
    assert metrics.reliability(5 * difference, probability, temperature=5.0).ece < 0.02
    diagram = metrics.reliability(difference, probability)
    assert diagram.count.sum() == 20_000
    assert diagram.count.max() - diagram.count.min() <= 1


def test_auroc_and_ranks_agree_with_their_definitions() -> None:
    rng = np.random.default_rng(4)
    signal, positive = rng.integers(5, size=60).astype(float), rng.uniform(size=60) < 0.4
    assert metrics.auroc(signal, positive) == pytest.approx(roc_auc_score(positive, signal))
    assert math.isnan(metrics.auroc(signal, np.zeros(60, dtype=bool)))
    assert metrics.ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]
    assert metrics.spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1.0)
    assert math.isnan(metrics.spearman(np.ones(3), np.arange(3.0)))


def test_risk_falls_when_doubt_knows_the_errors() -> None:
    wrong = np.array([0.0, 0.0, 1.0, 1.0])
    coverage, risk = metrics.risk_coverage(np.array([0.1, 0.2, 0.8, 0.9]), wrong)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0.0, 0.0, 1 / 3, 0.5])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    rng = np.random.default_rng(5)
    scores, quality = rng.normal(size=5), rng.normal(size=5)
    subsets = itertools.combinations(range(5), n)
    expected = np.mean([quality[max(subset, key=lambda i: scores[i])] for subset in subsets])
    assert metrics.best_of_n(scores, quality, n) == pytest.approx(expected)


def test_best_of_n_of_equal_scores_is_the_mean_and_its_distance_known() -> None:
    quality = np.array([1.0, 2.0, 6.0])
    assert metrics.best_of_n(np.zeros(3), quality, 2) == pytest.approx(3.0)
    assert metrics.best_of_n_kl(1) == 0.0
    assert metrics.best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    with pytest.raises(ValueError, match="at least 4 samples"):
        metrics.best_of_n(np.zeros(3), quality, 4)


def test_a_few_prompts_all_right_are_no_certainty() -> None:
    few = metrics.accuracy(np.ones(3), np.arange(3))
    assert (few.value, few.high) == (1.0, pytest.approx(1.0))
    # Wilson 1927, with z the 97.5 % quantile of the normal distribution: n / (n + z^2) at a rate of 1.
    assert few.low == pytest.approx(3 / (3 + 1.959964**2), abs=1e-5)
    assert metrics.accuracy(np.ones(1), np.arange(1)).low < 0.5
