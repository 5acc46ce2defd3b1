"""Weights and masks of stale tokens against float64 numpy, and what they leave of the clipped objective's gradient."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrlhf.algorithms.off_policy import (
    importance_weights,
    off_policy_weights,
    probability_ratio,
    responses_inside,
    tokens_inside,
)
from rayrlhf.algorithms.policy_loss import policy_loss

DOUBLE = torch.float64
BAND = (0.5, 5.0)
RATIOS = np.array(
    [
        [1.0, 1.5, 0.4, 9.0],  # tokens out on either side
        [0.9, 1.1, 1.0, 0.8],
        [3.0, 2.5, 4.0, 1.0],  # every token inside, the geometric mean not
        [7.0, 0.1, 1.0, 1.0],  # as a whole inside, two tokens not; the last two columns of it are padding
        [1.0, 1.0, 1.0, 1.0],  # nothing trained
    ]
)
MASK = torch.tensor([[True] * 4, [True] * 4, [False, True, True, True], [True, True, False, False], [False] * 4])


def logprobs() -> tuple[Tensor, Tensor]:
    """Proximal and behaviour whose ratios are RATIOS."""
    behaviour = -torch.linspace(0.5, 3.0, RATIOS.size, dtype=DOUBLE).reshape(RATIOS.shape)
    return behaviour + torch.from_numpy(np.log(RATIOS)), behaviour


def weights(**options: Any) -> np.ndarray:
    found = off_policy_weights(*logprobs(), MASK, **({"cap": None, "band": None, "sequence_band": None} | options))
    return np.asarray(found.numpy())


def in_numpy(
    cap: float | None, band: tuple[float, float] | None, sequence_band: tuple[float, float] | None
) -> np.ndarray:
    """Written out, response by response and token by token."""
    found = np.zeros_like(RATIOS)
    for i, (row, mask) in enumerate(zip(RATIOS, MASK.numpy(), strict=True)):
        own = row[mask]
        if sequence_band and len(own) and not sequence_band[0] <= own.prod() ** (1 / len(own)) <= sequence_band[1]:
            continue
        for t, ratio in enumerate(row):
            if mask[t] and (band is None or band[0] <= ratio <= band[1]):
                found[i, t] = ratio if cap is None else min(ratio, cap)
    return found


def test_the_weight_of_a_token_is_truncated() -> None:
    old, rollout = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -3.0, -0.5]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(importance_weights(old, rollout, mask, cap=2.0), torch.tensor([[1.0, 2.0, 0.0]]))
    whole = importance_weights(old, rollout, mask, cap=None)
    torch.testing.assert_close(whole, torch.tensor([[1.0, math.e**2, 0.0]]))
    torch.testing.assert_close(probability_ratio(old, rollout, mask), torch.tensor([[1.0, math.e**2, 1.0]]))


def test_nothing_of_it_has_a_gradient() -> None:
    proximal, behaviour = logprobs()
    proximal.requires_grad_()
    options: Any = {"cap": 2.0, "band": BAND, "sequence_band": (0.5, 2.0)}
    assert not off_policy_weights(proximal, behaviour, MASK, **options).requires_grad
    assert not probability_ratio(proximal, behaviour, MASK).requires_grad


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("band", [None, BAND, (0.95, 1.05)])
@pytest.mark.parametrize("sequence_band", [None, (0.5, 2.0), (0.99, 1.01)])
def test_every_combination_equals_numpy(cap: Any, band: Any, sequence_band: Any) -> None:
    found = weights(cap=cap, band=band, sequence_band=sequence_band)
    np.testing.assert_allclose(found, in_numpy(cap, band, sequence_band), rtol=1e-12)


@pytest.mark.parametrize("cap", [None, 0.5, 2.0])
def test_without_bands_it_is_truncated_importance_sampling_bit_for_bit(cap: float | None) -> None:
    proximal, behaviour = (x.float() for x in logprobs())
    found = off_policy_weights(proximal, behaviour, MASK, cap=cap, band=None, sequence_band=None)
    assert torch.equal(found, importance_weights(proximal, behaviour, MASK, cap=cap))


def test_the_band_is_closed_and_of_trained_tokens() -> None:
    ratios = torch.tensor([[0.5, 5.0, 0.4999, 5.001, 1.0]], dtype=DOUBLE)
    mask = torch.tensor([[True, True, True, True, False]])
    # Bounds a rounding beyond 0.5 and 5, which exp(log(ratio)) may miss by as much.
    found = tokens_inside(ratios.log(), torch.zeros_like(ratios), mask, band=(0.5 - 1e-12, 5.0 + 1e-12))
    assert found.tolist() == [[True, True, False, False, False]]
    equal = torch.full((1, 5), -2.0)
    assert tokens_inside(equal, equal, mask, band=(1.0, 1.0)).tolist() == mask.tolist()
    assert responses_inside(equal, equal, mask, band=(1.0, 1.0)).tolist() == [True]


def test_masks_are_of_the_ratios_before_any_is_truncated_or_masked() -> None:
    """A weight of 9 is not one of 2 that the band would keep; a response is judged by the tokens that the band takes too."""
    assert weights(cap=2.0, band=BAND)[0].tolist() == pytest.approx([1.0, 1.5, 0.0, 0.0])
    # Row 0 with its tokens: (1 * 1.5 * 0.4 * 9) ** (1 / 4) = 1.52; of those inside the band alone: 1.22.
    assert not weights(band=BAND, sequence_band=(0.5, 1.4))[0].any()
    assert weights(band=BAND, sequence_band=(0.5, 1.6))[0].tolist() == pytest.approx([1.0, 1.5, 0.0, 0.0])
    # Row 2 is (2.5 * 4 * 1) ** (1 / 3) = 2.15; truncated at 2 it would be (2 * 2 * 1) ** (1 / 3) = 1.59.
    assert not weights(cap=2.0, sequence_band=(0.5, 2.0))[2].any()


@pytest.mark.parametrize("length", [1, 10, 5000])
def test_a_response_is_judged_alike_at_any_length(length: int) -> None:
    gap = torch.tensor([[0.69], [0.70], [-0.69], [-0.70]]).expand(4, length)
    mask = torch.ones(4, length, dtype=torch.bool)
    found = responses_inside(gap - 3.0, torch.full((4, length), -3.0), mask, band=(0.5, 2.0))
    assert found.tolist() == [True, False, True, False]


def test_a_response_without_trained_tokens_is_inside() -> None:
    assert responses_inside(*logprobs(), MASK, band=(0.99, 1.01)).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("gap", [100.0, 1000.0, -1000.0, float("nan")])
def test_an_absurd_gap_is_outside_and_leaves_finite_weights(gap: float) -> None:
    proximal, behaviour = torch.tensor([[gap, 0.0]]), torch.zeros(1, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    options: Any = {"cap": None, "sequence_band": None}
    assert off_policy_weights(proximal, behaviour, mask, band=(1e-6, 1e6), **options).tolist() == [[0.0, 1.0]]
    options = {"cap": None, "band": None}
    assert not off_policy_weights(proximal, behaviour, mask, sequence_band=(1e-6, 1e6), **options).any()


@pytest.mark.parametrize("garbage", [100.0, float("inf"), float("nan")])
def test_what_lies_under_the_mask_changes_nothing(garbage: float) -> None:
    proximal, behaviour = logprobs()
    options: Any = {"cap": 2.0, "band": BAND, "sequence_band": (0.5, 2.0)}
    clean = off_policy_weights(proximal, behaviour, MASK, **options)
    dirty = off_policy_weights(torch.where(MASK, proximal, garbage), behaviour, MASK, **options)
    assert torch.equal(dirty, clean)


# -- the objective --------------------------------------------------------------------------------------------------


def loss_and_gradient(
    importance: Tensor | None, mask: Tensor = MASK, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Of a policy that has moved on from proximal, clipped here and there; the count is of the whole of MASK."""
    rows = torch.arange(len(RATIOS)) if rows is None else rows
    generator = torch.Generator().manual_seed(3)
    moved, advantages = (torch.randn(RATIOS.shape, generator=generator, dtype=DOUBLE) for _ in range(2))
    proximal, _ = logprobs()
    current = (proximal + 0.2 * moved).requires_grad_()
    parts = policy_loss(
        current[rows],
        proximal[rows],
        advantages[rows],
        mask[rows],
        token_count=int(MASK.sum()),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
        importance=None if importance is None else importance[rows],
    )
    (gradient,) = torch.autograd.grad(parts.loss, current)
    return parts.loss.detach(), gradient


@pytest.mark.parametrize(
    "options",
    [{"band": BAND}, {"sequence_band": (0.5, 2.0)}, {"cap": 2.0, "band": BAND, "sequence_band": (0.5, 2.0)}],
)
def test_a_masked_token_has_no_gradient_and_the_others_theirs(options: dict[str, Any]) -> None:
    """Theirs: of the plain loss over the same count, times their own weight."""
    importance = torch.from_numpy(weights(**options))
    loss, gradient = loss_and_gradient(importance)
    _, plain = loss_and_gradient(None)
    masked = MASK & (importance == 0)
    assert masked.any()
    assert (gradient[masked] == 0.0).all()
    assert (plain[masked] != 0.0).any()
    torch.testing.assert_close(gradient, plain * importance, rtol=1e-12, atol=0.0)
    without, gradient_without = loss_and_gradient(importance, mask=MASK & ~masked)
    torch.testing.assert_close(loss, without, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(gradient, gradient_without, rtol=1e-12, atol=0.0)


def test_kept_tokens_of_weight_one_have_the_plain_gradient() -> None:
    """Proximal is behaviour but for a token that is out: what is left is PPO without a correction, over the same count."""
    proximal, behaviour = logprobs()
    out = torch.zeros_like(MASK).index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(True))
    behaviour = torch.where(out, proximal - 5.0, proximal)
    importance = off_policy_weights(proximal, behaviour, MASK, cap=2.0, band=BAND, sequence_band=None)
    _, gradient = loss_and_gradient(importance)
    _, plain = loss_and_gradient(None)
    assert torch.equal(gradient, torch.where(out, 0.0, plain))


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_splitting_a_minibatch_of_masked_tokens_changes_no_gradient(pieces: int) -> None:
    importance = torch.from_numpy(weights(cap=2.0, band=BAND, sequence_band=(0.5, 2.0)))
    loss, gradient = loss_and_gradient(importance)
    parts = [loss_and_gradient(importance, rows=rows) for rows in torch.arange(len(RATIOS)).tensor_split(pieces)]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(), loss, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(torch.stack([part for _, part in parts]).sum(dim=0), gradient, rtol=1e-12, atol=0.0)


def test_the_weighted_objective_is_the_one_under_proximal() -> None:
    """Decoupled PPO: every outcome in proportion to behaviour gives, weighted, what those of proximal give."""
    behaviour, proximal, current = (
        torch.tensor(p, dtype=DOUBLE) for p in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.3, 0.6])
    )
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)

    def expected(drawn: Tensor) -> float:
        counts = (drawn * 10).round().long()
        laid = [x.repeat_interleave(counts).unsqueeze(0) for x in (current, proximal, advantages, drawn)]
        mask = torch.ones(1, 10, dtype=torch.bool)
        logs = [laid[0].log(), laid[1].log(), laid[3].log()]
        importance = off_policy_weights(logs[1], logs[2], mask, cap=None, band=None, sequence_band=None)
        options: Any = {"token_count": 10, "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
        return float(policy_loss(logs[0], logs[1], laid[2], mask, importance=importance, **options).loss)

    assert expected(behaviour) == pytest.approx(expected(proximal), rel=1e-12)
