import math

import pytest
import torch
from torch import Tensor

from rayrlhf.algorithms.policy_loss import PolicyLoss, entropy_bonus, kl_loss, policy_loss

DOUBLE = torch.float64


def loss_of(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor | None = None, **changes: object
) -> PolicyLoss:
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    options: dict[str, object] = {
        "token_count": int(mask.sum()),
        "clip_low": 0.2,
        "clip_high": 0.3,
        "dual_clip": None,
        "importance": None,
    }
    return policy_loss(logprobs, old, advantages, mask, **(options | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip", "objective", "moves"),
    [
        (1.1, 2.0, None, 2.2, True),
        (1.5, 2.0, None, 2.6, False),  # above 1 + clip_high, good action: no more push
        (0.5, 2.0, None, 1.0, True),  # below the band, good action: full pull back
        (0.9, -2.0, None, -1.8, True),
        (0.5, -2.0, None, -1.6, False),  # below 1 - clip_low, bad action: no more push
        (4.0, -2.0, None, -8.0, True),
        (4.0, -2.0, 3.0, -6.0, False),  # the dual clip bounds a bad action's pull
        (2.0, -2.0, 3.0, -4.0, True),
        (4.0, 2.0, 3.0, 2.6, False),
    ],
)
def test_every_region_of_the_clip(
    ratio: float, advantage: float, dual_clip: float | None, objective: float, moves: bool
) -> None:
    logprobs = torch.tensor([[math.log(ratio) - 1.0]], dtype=DOUBLE, requires_grad=True)
    parts = loss_of(
        logprobs, torch.tensor([[-1.0]], dtype=DOUBLE), torch.tensor([[advantage]], dtype=DOUBLE), dual_clip=dual_clip
    )
    parts.loss.backward()
    assert float(parts.loss) == pytest.approx(-objective)
    assert logprobs.grad is not None
    assert float(logprobs.grad) == pytest.approx(-ratio * advantage if moves else 0.0)
    assert float(parts.clip_fraction) == (0.0 if moves else 1.0)
    assert float(parts.approx_kl) == pytest.approx(ratio - 1 - math.log(ratio))
    assert float(parts.ratio_max_error) == pytest.approx(abs(ratio - 1))


def test_at_the_first_step_the_gradient_is_that_of_reinforce() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=DOUBLE, requires_grad=True)
    tokens = torch.randint(7, (3, 5), generator=generator)
    advantages = torch.randn(3, 5, generator=generator, dtype=DOUBLE)
    logprobs = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    parts = loss_of(logprobs, logprobs.detach(), advantages)
    assert float(parts.loss.detach()) == pytest.approx(-float(advantages.mean()))
    (ours,) = torch.autograd.grad(parts.loss, logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * logprobs).mean(), logits)
    torch.testing.assert_close(ours, reinforce)
    assert float(parts.ratio_max_error) == 0.0


@pytest.mark.parametrize("garbage", [100.0, float("inf"), float("nan")])
def test_what_lies_under_the_mask_changes_neither_loss_nor_gradient(garbage: float) -> None:
    mask = torch.tensor([[True, True, False]])
    clean = torch.tensor([[-1.0, -2.0, 0.0]], dtype=DOUBLE, requires_grad=True)
    dirty = torch.tensor([[-1.0, -2.0, garbage]], dtype=DOUBLE, requires_grad=True)
    old = torch.tensor([[-1.1, -1.9, 0.0]], dtype=DOUBLE)
    advantages = torch.tensor([[1.0, -1.0, garbage]], dtype=DOUBLE)
    for logprobs in (clean, dirty):
        parts = loss_of(logprobs, old, advantages, mask)
        penalty = kl_loss(logprobs, old, mask, kind="k3", token_count=2)
        (parts.loss + penalty).backward()
    assert clean.grad is not None
    assert dirty.grad is not None
    assert torch.isfinite(dirty.grad).all()
    torch.testing.assert_close(dirty.grad, clean.grad)


def test_an_absurd_ratio_on_a_valid_token_gives_a_finite_gradient() -> None:
    logprobs = torch.tensor([[0.0]], requires_grad=True)
    parts = loss_of(logprobs, torch.tensor([[-1000.0]]), torch.tensor([[-1.0]]))
    parts.loss.backward()
    assert torch.isfinite(parts.loss)
    assert torch.isfinite(logprobs.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 7])
def test_splitting_a_batch_changes_neither_loss_nor_gradient(pieces: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs = torch.randn(7, 6, generator=generator, dtype=DOUBLE, requires_grad=True)
    old, advantages, reference = (torch.randn(7, 6, generator=generator, dtype=DOUBLE) for _ in range(3))
    mask = torch.rand(7, 6, generator=generator) < 0.7
    count = int(mask.sum())

    def total(rows: Tensor) -> Tensor:
        part = loss_of(logprobs[rows], old[rows], advantages[rows], mask[rows], token_count=count)
        entropy = entropy_bonus(logprobs[rows] ** 2, mask[rows], token_count=count)
        return part.loss - entropy + kl_loss(logprobs[rows], reference[rows], mask[rows], kind="k2", token_count=count)

    whole = total(torch.arange(7))
    split = sum((total(rows) for rows in torch.arange(7).tensor_split(pieces)), torch.zeros((), dtype=DOUBLE))
    (whole_gradient,) = torch.autograd.grad(whole, logprobs, retain_graph=True)
    (split_gradient,) = torch.autograd.grad(split, logprobs)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-12, atol=1e-12)


def test_padding_columns_change_nothing() -> None:
    logprobs, old, advantages = torch.tensor([[-1.0]]), torch.tensor([[-1.2]]), torch.tensor([[0.7]])
    padded = [torch.nn.functional.pad(x, (0, 3), value=9.0) for x in (logprobs, old, advantages)]
    mask = torch.tensor([[True, False, False, False]])
    assert float(loss_of(*padded, mask).loss) == float(loss_of(logprobs, old, advantages).loss)


def test_importance_weighs_the_objective() -> None:
    old, mask = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[True, True, False]])
    weights, advantages = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    assert float(loss_of(old, old, advantages, mask, importance=weights).loss) == pytest.approx(-1.5)
