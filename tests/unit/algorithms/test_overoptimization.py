import math

import numpy as np
import pytest

from rayrlhf.algorithms.overoptimization import RewardCurve, fit_reward_curve, standard_errors_below


def test_the_fit_finds_the_curve_it_was_drawn_from() -> None:
    curve = RewardCurve(alpha=1.2, beta=0.5)
    distance = np.linspace(0.0, 8.0, 30)
    found = fit_reward_curve(distance, curve.at(distance))
    assert found is not None
    assert (found.alpha, found.beta) == (pytest.approx(1.2), pytest.approx(0.5))
    noisy = fit_reward_curve(distance, curve.at(distance) + np.random.default_rng(0).normal(scale=0.05, size=30))
    assert noisy is not None
    assert noisy.alpha == pytest.approx(1.2, rel=0.1)


def test_its_peak_is_where_the_curve_is_greatest() -> None:
    curve = RewardCurve(alpha=1.2, beta=0.5)
    assert curve.peak == pytest.approx(math.exp(1.2 / 0.5 - 1.0))
    fine = np.linspace(0.01, 20.0, 100_000)
    assert fine[curve.at(fine).argmax()] == pytest.approx(curve.peak, rel=1e-3)
    assert curve.at(np.array([curve.peak]))[0] == pytest.approx(curve.beta * curve.peak)
    assert curve.at(np.array([0.0]))[0] == 0.0
    assert RewardCurve(alpha=1.0, beta=0.0).peak is None


def test_too_few_distances_are_no_curve() -> None:
    assert fit_reward_curve(np.array([0.0, 1.0, 1.0, 2.0]), np.zeros(4)) is None


def test_a_fall_is_measured_on_the_same_prompts() -> None:
    rng = np.random.default_rng(1)
    peak = rng.normal(size=50)
    difference = rng.normal(loc=0.2, scale=0.5, size=50)
    expected = difference.mean() / (difference.std(ddof=1) / math.sqrt(50))
    assert standard_errors_below(peak - difference, peak) == pytest.approx(expected)
    assert standard_errors_below(peak + 1.0, peak) == 0.0
    assert standard_errors_below(np.array([1.0]), np.array([2.0])) == 0.0
