import numpy as np
import pytest

from rayrlhf.algorithms.ensemble import combine, standardized

SCORES = np.array([[1.0, 3.0], [-1.0, -1.0]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", [2.0, -1.0]), ("min", [1.0, -1.0]), ("mean_std", [1.5, -1.0]), ("mean_var", [1.5, -1.0])],
)
def test_combinations_of_two_members(how: str, expected: list[float]) -> None:
    score, spread = combine(SCORES, how, penalty=0.5)  # type: ignore[arg-type]
    assert score.tolist() == expected
    assert spread.tolist() == [1.0, 0.0]


def test_the_variance_penalty_grows_with_the_square() -> None:
    wide, _ = combine(3 * SCORES, "mean_var", penalty=0.5)
    assert wide.tolist() == [6.0 - 0.5 * 9.0, -3.0]


def test_standardized_members_forget_shift_and_scale() -> None:
    reference = np.random.default_rng(0).normal(size=(100, 1))
    members = np.concatenate([reference, 5.0 * reference - 40.0], axis=1)
    found = standardized(members, members.mean(0), members.std(0))
    np.testing.assert_allclose(found[:, 0], found[:, 1])
    assert combine(found, "mean", penalty=0.0)[1].max() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("penalty", [1e-4, 0.3, 2.0, 50.0])
def test_the_soft_minimum_is_the_certainty_equivalent_of_an_exponential_utility(penalty: float) -> None:
    scores = np.random.default_rng(0).normal(size=(20, 5)) * 3.0
    found, spread = combine(scores, "soft_min", penalty=penalty)
    # In logarithms of sums with a longer mantissa, as far as that reaches.
    exact = -np.log(np.mean(np.exp(-np.longdouble(penalty) * scores.astype(np.longdouble)), axis=1)) / penalty
    np.testing.assert_allclose(found, exact.astype(float), rtol=1e-7, atol=1e-7)
    assert (found <= scores.mean(1) + 1e-12).all()
    assert (found >= scores.min(1) - 1e-12).all()
    np.testing.assert_allclose(spread, scores.std(1))


def test_the_soft_minimum_has_the_mean_and_the_worst_case_for_limits() -> None:
    scores = np.random.default_rng(1).normal(size=(20, 5))
    assert combine(scores, "soft_min", penalty=0.0)[0] == pytest.approx(scores.mean(1))
    small, _ = combine(scores, "soft_min", penalty=1e-3)
    np.testing.assert_allclose(small, scores.mean(1) - 0.5e-3 * scores.var(1), atol=2e-6)
    np.testing.assert_allclose(combine(scores, "soft_min", penalty=1e5)[0], scores.min(1), atol=1e-4)
    # No score is too large for it.
    assert combine(np.array([[1e6, -1e6]]), "soft_min", penalty=10.0)[0] == pytest.approx(-1e6)
