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
