import itertools
import math

import numpy as np
import pytest

from rayrlhf.algorithms.pass_rate import is_binary, pass_at_k, pass_rate, wilson_interval


def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_pass() -> None:
    for scores in ([1, 0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0], [1, 1, 1]):
        group = [float(score) for score in scores]
        for k in range(1, len(group) + 1):
            choices = list(itertools.combinations(group, k))
            found = pass_at_k([group], k)
            assert found is not None
            assert found.value == pytest.approx(sum(any(choice) for choice in choices) / len(choices))


def test_pass_at_k_is_unbiased_where_one_minus_the_failures_is_not() -> None:
    """Exact over all outcomes of 6 responses that pass with chance 0.2: 1 - 0.8^3."""
    chance, n, k = 0.2, 6, 3
    expected = biased = 0.0
    for c in range(n + 1):
        weight = math.comb(n, c) * chance**c * (1 - chance) ** (n - c)
        found = pass_at_k([[1.0] * c + [0.0] * (n - c)], k)
        assert found is not None
        expected += weight * found.value
        biased += weight * (1 - (1 - c / n) ** k)
    assert expected == pytest.approx(1 - 0.8**3)
    assert abs(biased - expected) > 0.02


def test_pass_at_k_is_a_mean_over_prompts_with_k_responses() -> None:
    found = pass_at_k([[1.0, 0.0], [0.0, 0.0], [1.0]], 2)
    assert found is not None
    assert (found.value, found.count) == (0.5, 2)
    assert pass_at_k([[1.0], [0.0]], 2) is None


@pytest.mark.parametrize(
    ("rate", "count", "low", "high"),
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    [
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(rate: float, count: int, low: float, high: float) -> None:
    assert wilson_interval(rate, count) == pytest.approx((low, high), abs=5e-5)


def test_one_response_a_prompt_is_wilsons_interval() -> None:
    rate = pass_rate([[1.0]] * 81 + [[0.0]] * 182)
    assert (rate.value, rate.count) == (pytest.approx(81 / 263), 263)
    assert (rate.low, rate.high) == pytest.approx((0.2553, 0.3662), abs=5e-4)


def test_prompts_that_pass_all_or_nothing_count_once() -> None:
    whole = pass_rate([[1.0] * 4] * 10 + [[0.0] * 4] * 10)
    assert (whole.value, whole.count) == (0.5, 80)
    assert (whole.low, whole.high) == pytest.approx(wilson_interval(0.5, 20))
    solved = pass_rate([[1.0] * 4] * 10)
    assert (solved.low, solved.high) == pytest.approx((wilson_interval(1.0, 10)[0], 1.0))


@pytest.mark.parametrize(("alike", "responses"), [(0.0, 4), (0.7, 4), (0.7, 1)])
def test_the_interval_holds_the_true_rate_nineteen_times_of_twenty(alike: float, responses: int) -> None:
    """Prompts whose own pass rates differ by `alike`, around 0.4."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        own = np.where(rng.random(32) < 0.4, 0.4 + 0.6 * alike, 0.4 - 0.4 * alike)
        rate = pass_rate((rng.random((32, responses)) < own[:, None]).astype(float).tolist())
        held += rate.low <= 0.4 <= rate.high
    assert 0.93 <= held / 1000 <= 0.98


def test_only_zeros_and_ones_are_counted() -> None:
    assert is_binary([0.0, 1.0, 1.0])
    assert is_binary([0.0])
    assert not is_binary([0.0, 0.5])
    assert not is_binary([0.0, -1.0])
    assert not is_binary([])
