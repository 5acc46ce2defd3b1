"""Losses of preferences against closed forms and float64 references."""

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.algorithms.preference_loss import (
    UNRANKED,
    LossSettings,
    PreferenceLoss,
    PreferenceTargets,
    bradley_terry,
    centering,
    davidson,
    ordered_share,
    plackett_luce,
    preference_loss,
    rao_kupper,
    robust,
    row_losses,
    usable_rows,
)
from rayrlhf.config import LossConfig

DOUBLE = torch.float64
PAIRWISE = ["bradley_terry", "margin", "scaled", "robust", "hinge", "rao_kupper", "davidson"]
NAN = math.nan


def targets(rank: list[list[int]], **known: Any) -> PreferenceTargets:
    ranks = torch.tensor(rank)
    rows, k = ranks.shape
    facts: dict[str, Any] = {
        "valid": torch.ones(rows, k, dtype=torch.bool),
        "rank": ranks,
        "rating": torch.full((rows, k), NAN, dtype=DOUBLE),
        "label": torch.full((rows, k), NAN, dtype=DOUBLE),
        "probability": torch.ones(rows, dtype=DOUBLE),
        "margin": torch.ones(rows, dtype=DOUBLE),
        "weight": torch.ones(rows, dtype=DOUBLE),
        "pair_weight": torch.ones(rows, k, k, dtype=DOUBLE),
    }
    return PreferenceTargets(**(facts | known))


def scores(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def test_the_configuration_offers_every_loss() -> None:
    assert get_args(LossConfig.model_fields["kind"].annotation) == get_args(PreferenceLoss)
    assert LossSettings(**LossConfig().model_dump()).kind == "bradley_terry"


def test_bradley_terry_is_ln_2_at_zero_and_its_gradient_minus_sigmoid() -> None:
    difference = torch.tensor([0.0, 1.5, -2.0], dtype=DOUBLE, requires_grad=True)
    loss = bradley_terry(difference)
    assert float(loss[0].detach()) == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(loss.sum(), difference)
    torch.testing.assert_close(gradient, -torch.sigmoid(-difference).detach())


def test_soft_labels_mix_both_orders_and_smoothing_is_one() -> None:
    difference = torch.tensor([0.7, -1.1], dtype=DOUBLE)
    expected = -(0.8 * torch.log(torch.sigmoid(difference)) + 0.2 * torch.log(torch.sigmoid(-difference)))
    torch.testing.assert_close(bradley_terry(difference, 0.8), expected)
    rows = scores([0.7, 0.0], [-1.1, 0.0])
    pair = targets([[0, 1], [0, 1]])
    torch.testing.assert_close(row_losses(rows, pair, LossSettings(smoothing=0.2)), expected)
    soft = targets([[0, 1], [0, 1]], probability=torch.full((2,), 0.8, dtype=DOUBLE))
    torch.testing.assert_close(row_losses(rows, soft, LossSettings()), expected)


def test_no_smoothing_no_margin_and_no_flips_are_bradley_terry() -> None:
    rows, pair = scores([0.3, 1.0], [2.0, -1.0]), targets([[0, 1], [1, 0]], margin=torch.zeros(2, dtype=DOUBLE))
    plain = row_losses(rows, pair, LossSettings())
    for other in (LossSettings(kind="margin"), LossSettings(kind="robust", flip_rate=0.0), LossSettings(smoothing=0.0)):
        torch.testing.assert_close(row_losses(rows, pair, other), plain)
    strong = targets([[0, 1], [1, 0]], margin=torch.full((2,), 3.0, dtype=DOUBLE))
    torch.testing.assert_close(row_losses(rows, strong, LossSettings(kind="scaled")), 3.0 * plain)


@pytest.mark.parametrize("kind", PAIRWISE)
def test_a_common_shift_changes_no_pairwise_loss(kind: Any) -> None:
    rows, ranked = scores([0.3, 1.0, -0.2]), targets([[1, 0, 1]])
    wanted = row_losses(rows, ranked, LossSettings(kind=kind))
    torch.testing.assert_close(row_losses(rows + 100.0, ranked, LossSettings(kind=kind)), wanted)


@pytest.mark.parametrize("kind", [*PAIRWISE, "plackett_luce"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_far_scores_are_finite_and_their_gradients_bounded(kind: Any, dtype: torch.dtype, far: float) -> None:
    rows = torch.tensor([[far, -far / 2, 0.0]], dtype=dtype, requires_grad=True)
    loss = row_losses(rows, targets([[0, 1, 1]]), LossSettings(kind=kind, flip_rate=0.1)).sum()
    loss.backward()
    assert rows.grad is not None
    assert torch.isfinite(loss)
    assert rows.grad.abs().max() <= 3.0


def test_robust_is_unbiased_for_the_clean_loss() -> None:
    """Over labels flipped with rate 0.3 its mean is the loss of the clean label."""
    difference = torch.tensor([0.4, -3.0], dtype=DOUBLE)
    mean = 0.7 * robust(difference, 0.3) + 0.3 * robust(-difference, 0.3)
    torch.testing.assert_close(mean, bradley_terry(difference))


def test_hinge_is_zero_beyond_its_margin() -> None:
    found = row_losses(scores([2.0, 0.0], [0.2, 0.0], [0.0, 1.0]), targets([[0, 1]] * 3), LossSettings(kind="hinge"))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.8, 2.0], dtype=DOUBLE))


@pytest.mark.parametrize("difference", [-2.0, 0.0, 0.9])
def test_tie_models_are_distributions_with_the_published_odds(difference: float) -> None:
    d = torch.tensor([difference], dtype=DOUBLE)
    no, yes = torch.tensor([False]), torch.tensor([True])
    a, b = math.exp(difference), 1.0
    theta, nu = 1.7, 0.6
    win, lose, tie = (
        float(torch.exp(-x)) for x in (rao_kupper(d, no, theta), rao_kupper(-d, no, theta), rao_kupper(d, yes, theta))
    )
    assert win == pytest.approx(a / (a + theta * b))
    assert tie == pytest.approx((theta**2 - 1) * a * b / ((a + theta * b) * (theta * a + b)))
    assert win + lose + tie == pytest.approx(1.0)
    win, lose, tie = (float(torch.exp(-davidson(x, tied, nu))) for x, tied in ((d, no), (-d, no), (d, yes)))
    assert tie == pytest.approx(nu * math.sqrt(a * b) / (a + b + nu * math.sqrt(a * b)))
    assert win + lose + tie == pytest.approx(1.0)


def test_a_tie_pulls_scores_together() -> None:
    for kind in ("bradley_terry", "rao_kupper", "davidson"):
        rows = scores([1.0, 0.0]).requires_grad_()
        row_losses(rows, targets([[0, 0]]), LossSettings(kind=kind)).sum().backward()
        assert rows.grad is not None
        assert rows.grad[0, 0] > 0 > rows.grad[0, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5))
def test_plackett_luce_is_the_product_of_choices(values: list[float]) -> None:
    """Drawing without replacement, float64, in the stated order."""
    expected = -sum(v - math.log(sum(math.exp(w) for w in values[i:])) for i, v in enumerate(values[:-1]))
    found = plackett_luce(torch.tensor([values], dtype=DOUBLE), torch.arange(len(values)).unsqueeze(0))
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_of_two_responses_rankings_are_bradley_terry() -> None:
    rows, pair = scores([0.3, 1.0], [2.0, -1.0]), targets([[0, 1], [1, 0]])
    torch.testing.assert_close(
        row_losses(rows, pair, LossSettings(kind="plackett_luce")), row_losses(rows, pair, LossSettings())
    )
    assert float(plackett_luce(scores([0.3, 1.0]), torch.tensor([[0, 0]]))) == 0.0


def test_k_responses_are_the_mean_of_their_pairs_and_absent_ones_do_not_count() -> None:
    values = [0.5, -0.3, 1.2]
    expected = np.mean([np.logaddexp(0, -(values[i] - values[j])) for i, j in ((0, 1), (0, 2), (1, 2))])
    full = row_losses(scores(values), targets([[0, 1, 2]]), LossSettings())
    assert float(full) == pytest.approx(expected)
    valid = torch.tensor([[True, True, True, False]])
    padded = targets([[0, 1, 2, UNRANKED]], valid=valid)
    for kind in ("bradley_terry", "plackett_luce"):
        wanted = row_losses(scores(values), targets([[0, 1, 2]]), LossSettings(kind=kind))
        found = row_losses(scores([*values, 1e9]), padded, LossSettings(kind=kind))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", PAIRWISE)
def test_a_pair_enters_its_row_by_its_weight(kind: Any) -> None:
    rows, known = scores([2.0, 1.0, -0.5]), targets([[0, 1, 2]])
    settings = LossSettings(kind=kind)
    alone = [row_losses(rows[:, [i, j]], targets([[0, 1]]), settings) for i, j in ((0, 1), (0, 2), (1, 2))]
    weights = torch.ones(1, 3, 3, dtype=DOUBLE)
    weights[0, 0, 1], weights[0, 1, 2] = 2.5, 0.5
    found = row_losses(rows, replace(known, pair_weight=weights), settings)
    torch.testing.assert_close(found, (2.5 * alone[0] + alone[1] + 0.5 * alone[2]) / 3)


def test_ties_pull_scores_together_or_say_nothing() -> None:
    rows, known = scores([2.0, 1.0, -0.5]), targets([[0, 1, 1]])
    strict = [math.log1p(math.exp(-2.0 + low)) for low in (1.0, -0.5)]
    tie = 0.5 * (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.5)))
    assert float(row_losses(rows, known, LossSettings())) == pytest.approx((sum(strict) + tie) / 3)
    found = row_losses(rows, known, LossSettings(learn_ties=False))
    assert float(found) == pytest.approx(sum(strict) / 2)


def test_regression_and_binary_read_single_responses() -> None:
    rated = targets([[UNRANKED] * 2], rating=scores([1.0, NAN]))
    assert float(row_losses(scores([3.0, 9.0]), rated, LossSettings(kind="regression"))) == 4.0
    labelled = targets([[UNRANKED] * 2], label=scores([1.0, 0.0]))
    found = row_losses(scores([2.5, 0.5]), labelled, LossSettings(kind="binary", origin=0.5))
    assert float(found) == pytest.approx((math.log1p(math.exp(-2.0)) + math.log(2.0)) / 2)


def test_rows_that_teach_nothing_are_known_and_cost_nothing() -> None:
    known = targets([[0, 1], [0, 0], [UNRANKED, UNRANKED]], rating=scores([NAN, NAN], [NAN, NAN], [1.0, NAN]))
    assert usable_rows(known, LossSettings(kind="bradley_terry")).tolist() == [True, True, False]
    assert usable_rows(known, LossSettings(learn_ties=False)).tolist() == [True, False, False]
    assert usable_rows(known, LossSettings(kind="plackett_luce")).tolist() == [True, False, False]
    assert usable_rows(known, LossSettings(kind="regression")).tolist() == [False, False, True]
    rows = scores([0.0, 0.0], [0.0, 0.0], [7.0, 7.0]).requires_grad_()
    loss = preference_loss(rows, known, LossSettings(l2_coef=1.0), row_weight=2.0)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.backward()
    assert rows.grad is not None
    assert rows.grad[2].abs().sum() == 0.0


def test_weights_and_regularisers_enter_as_shares() -> None:
    rows = scores([1.0, 1.0], [2.0, -2.0])
    known = targets([[0, 1], [0, 1]], weight=torch.tensor([3.0, 1.0], dtype=DOUBLE))
    plain = row_losses(rows, known, LossSettings())
    assert centering(rows, known.valid).tolist() == [4.0, 0.0]
    found = preference_loss(rows, known, LossSettings(center_coef=0.5, l2_coef=0.1), row_weight=4.0)
    expected = (3.0 * (plain[0] + 0.5 * 4.0 + 0.1) + (plain[1] + 0.1 * 4.0)) / 4.0
    assert float(found) == pytest.approx(float(expected))


def test_ordered_share_counts_equal_scores_half() -> None:
    found = ordered_share(scores([2.0, 1.0, 1.0], [0.0, 0.0, 5.0]), torch.tensor([[0, 1, 2], [0, 1, 1]]))
    assert found.tolist() == pytest.approx([(1 + 1 + 0.5) / 3, 0.5 / 2])
