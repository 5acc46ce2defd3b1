"""Masking, KL, rewards, values, supervised losses, schedules, mismatch and seeds against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.algorithms.kl import KLCoefficient, kl_estimate
from rayrlhf.algorithms.masking import masked_mean, masked_sum, sequence_weights, whiten
from rayrlhf.algorithms.mismatch import mismatch_quantiles
from rayrlhf.algorithms.rewards import RunningMoments, normalize_scores, penalize_truncated, token_rewards
from rayrlhf.algorithms.schedule import lr_multiplier
from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.algorithms.supervised import token_nll
from rayrlhf.algorithms.value_loss import explained_variance, value_loss

DOUBLE = torch.float64
SOME = torch.tensor([[True, True, False], [True, False, False]])


def test_whitening_is_over_valid_tokens_of_the_whole_batch() -> None:
    x = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), -9.0]], dtype=DOUBLE)
    white = whiten(x, SOME)
    expected = (np.array([1.0, 2.0, 6.0]) - 3.0) / np.std([1.0, 2.0, 6.0])
    np.testing.assert_allclose(white[SOME], expected, rtol=1e-6)
    assert (white[~SOME] == 0).all()
    np.testing.assert_allclose(whiten(x, SOME, shift_mean=False)[SOME], expected + 3.0, rtol=1e-6)
    assert float(masked_mean(x, SOME)) == 3.0
    assert float(masked_mean(x, torch.zeros_like(SOME))) == 0.0


def test_sequence_weights_make_a_mean_over_tokens_one_over_responses() -> None:
    x = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), -9.0]], dtype=DOUBLE)
    weights = sequence_weights(SOME, token_count=3, row_count=2)
    assert float(masked_sum(torch.where(SOME, weights * x, 0.0), SOME) / 3) == pytest.approx((1.5 + 6.0) / 2)
    parts = [sequence_weights(row.unsqueeze(0), token_count=3, row_count=2) for row in SOME]
    assert torch.equal(torch.cat(parts), weights), "a part of a minibatch weighs as it does in the whole"
    assert not sequence_weights(torch.zeros_like(SOME), token_count=3, row_count=2).any()


def test_k1_and_k3_are_unbiased_and_k3_is_positive() -> None:
    p, q = (torch.randn(9, generator=torch.Generator().manual_seed(s), dtype=DOUBLE).log_softmax(0) for s in (0, 1))
    exact = float((p.exp() * (p - q)).sum())
    for kind in ("k1", "k3"):
        estimate = kl_estimate(p.unsqueeze(0), q.unsqueeze(0), kind=kind)[0]
        assert float((p.exp() * estimate).sum()) == pytest.approx(exact)
    assert (kl_estimate(p.unsqueeze(0), q.unsqueeze(0), kind="k3") >= 0).all()
    torch.testing.assert_close(kl_estimate(p.unsqueeze(0), q.unsqueeze(0), kind="k2")[0], 0.5 * (p - q) ** 2)


def test_the_kl_controller_moves_towards_its_target_and_is_bounded() -> None:
    for kl, factor in [(6.6, 1.01), (600.0, 1.02), (0.0, 0.98)]:
        coefficient = KLCoefficient(0.1, adaptive=True)
        coefficient.adapt(kl=kl, target=6.0, horizon=1000, samples=100)
        assert coefficient.value == pytest.approx(0.1 * factor)


def test_the_score_falls_on_the_last_valid_token_and_kl_on_all() -> None:
    kl = torch.tensor([[0.5, 1.0, float("nan")], [2.0, float("inf"), 3.0], [1.0, 1.0, 1.0]], dtype=DOUBLE)
    mask = torch.cat([SOME, torch.zeros(1, 3, dtype=torch.bool)])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0], dtype=DOUBLE), kl, mask, kl_coef=0.1)
    torch.testing.assert_close(
        rewards, torch.tensor([[-0.05, 9.9, 0.0], [19.8, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), min_size=1, max_size=5))
def test_running_moments_are_those_of_everything_seen(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments = moments.update(np.array(batch))
    everything = np.concatenate([np.array(b) for b in batches])
    assert moments.count == everything.size
    assert moments.mean == pytest.approx(everything.mean(), abs=1e-9)
    assert moments.std == pytest.approx(everything.std(), rel=1e-6, abs=1e-6)


def test_scores_are_normalised_then_clipped_then_penalised() -> None:
    moments = RunningMoments().update(np.array([0.0, 2.0]))
    scores = normalize_scores(torch.tensor([1.0, 3.0, 9.0]), moments, clip=3.0)
    torch.testing.assert_close(scores, torch.tensor([0.0, 2.0, 3.0]))
    torch.testing.assert_close(normalize_scores(torch.tensor([7.0]), None, clip=None), torch.tensor([7.0]))
    cut = penalize_truncated(scores, torch.tensor([True, False, True]), penalty=0.5)
    torch.testing.assert_close(cut, torch.tensor([-0.5, 2.0, 2.5]))


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    values = torch.tensor([[1.0, 1.0, float("nan")]], dtype=DOUBLE, requires_grad=True)
    old, returns = torch.tensor([[0.0, 0.9, 0.0]], dtype=DOUBLE), torch.tensor([[2.0, 0.0, 0.0]], dtype=DOUBLE)
    mask = torch.tensor([[True, True, False]])
    parts = value_loss(values, old, returns, mask, token_count=2, clip=0.2)
    # First token: clipped to 0.2, error 1.8^2 > 1; second: within the band, error 1.
    assert float(parts.loss.detach()) == pytest.approx(0.5 * (1.8**2 + 1.0) / 2)
    assert float(parts.clip_fraction) == 0.5
    parts.loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 0.5, 0.0]], dtype=DOUBLE))
    assert float(value_loss(values, old, returns, mask, token_count=2, clip=None).loss.detach()) == pytest.approx(0.5)


def test_explained_variance_of_a_perfect_a_constant_and_a_useless_critic() -> None:
    returns = torch.tensor([[1.0, 2.0, 9e9], [4.0, 9e9, 9e9]], dtype=DOUBLE)
    assert explained_variance(returns, returns, SOME) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(returns, 7.0), returns, SOME) == pytest.approx(0.0)
    assert explained_variance(2 * returns, returns, SOME) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones_like(returns), SOME) == 0.0


def test_token_nll_is_a_share_of_the_global_mean() -> None:
    logprobs = torch.tensor([[-1.0, -3.0, float("-inf")], [-2.0, 0.0, 0.0]], dtype=DOUBLE)
    assert float(token_nll(logprobs, SOME, token_count=12)) == pytest.approx(6 / 12)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)]
)
def test_schedules_at_their_corners(schedule: str, middle: float, end: float) -> None:
    def at(step: int) -> float:
        return lr_multiplier(step, total_steps=110, warmup_steps=10, schedule=schedule, min_ratio=0.1)  # type: ignore[arg-type]

    assert [at(0), at(4), at(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [at(10), at(60), at(110), at(500)] == pytest.approx([1.0, middle, end, end])


def test_mismatch_quantiles_are_those_of_all_tokens_together() -> None:
    rng = np.random.default_rng(0)
    engine = [rng.normal(size=n).astype(np.float32) for n in (5, 90, 1)]
    learner = [row + rng.normal(scale=0.1, size=row.size).astype(np.float32) for row in engine]
    gap = np.abs(np.concatenate(engine).astype(float) - np.concatenate(learner).astype(float))
    found = mismatch_quantiles(engine, learner)
    assert (found.p50, found.p95, found.p99, found.max) == pytest.approx(
        (*np.quantile(gap, [0.5, 0.95, 0.99]), gap.max())
    )
    ratio = np.exp(np.concatenate(learner).astype(float) - np.concatenate(engine).astype(float))
    assert found.outside == pytest.approx(np.mean((ratio < 0.9) | (ratio > 1.1)))
    assert found.tokens == 96
    with pytest.raises(ValueError, match="number of tokens"):
        mismatch_quantiles(engine, learner[:2])


def test_seeds_are_the_same_on_every_machine_and_differ_between_samples() -> None:
    assert derive_seed(0, "ppo", 3, 17, 1) == 2088343178
    seeds = {
        derive_seed(s, "ppo", step, p, k) for s in range(3) for step in range(5) for p in range(20) for k in range(4)
    }
    assert len(seeds) == 3 * 5 * 20 * 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(0, "1") != derive_seed(0, 1)
    assert derive_seed(0, 1, 23) != derive_seed(0, 12, 3)
