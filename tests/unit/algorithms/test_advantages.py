import numpy as np
import pytest
import torch

from rayrlhf.algorithms.advantages import certainty_weights, equal_scores, gae, group_advantages

DOUBLE = torch.float64


def reference_gae(rewards: np.ndarray, values: np.ndarray, end: float, gamma: float, lam: float) -> np.ndarray:
    """The definition: a discounted sum of temporal differences, in float64, with no recursion."""
    following = np.append(values[1:], end)
    deltas = rewards + gamma * following - values
    count = len(rewards)
    return np.array([sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)])


def test_numbers_worked_by_hand() -> None:
    # gamma 0.9, lambda 0.5: delta = [0 + .9*.4 - .5, 1 + 0 - .4] = [-0.14, 0.6]; A = [-0.14 + .45*.6, 0.6].
    rewards, values = torch.tensor([[0.0, 1.0]], dtype=DOUBLE), torch.tensor([[0.5, 0.4]], dtype=DOUBLE)
    advantages, returns = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.13, 0.6]], dtype=DOUBLE))
    torch.testing.assert_close(returns, torch.tensor([[0.63, 1.0]], dtype=DOUBLE))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.8), (1.0, 1.0), (0.9, 0.0)])
def test_rows_of_any_length_and_place_match_the_definition(gamma: float, lam: float) -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 4, 9))
    spans, ends = [(2, 9), (1, 4), (5, 6), (3, 7)], [0.0, 0.7, 0.0, -1.2]
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, (start, stop) in enumerate(spans):
        mask[row, start:stop] = True
    advantages, returns = gae(
        torch.from_numpy(rewards), torch.from_numpy(values), mask, gamma=gamma, lam=lam, bootstrap=torch.tensor(ends)
    )
    for row, (start, stop) in enumerate(spans):
        expected = reference_gae(rewards[row, start:stop], values[row, start:stop], ends[row], gamma, lam)
        np.testing.assert_allclose(advantages[row, start:stop], expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(returns[row, start:stop], expected + values[row, start:stop], rtol=1e-6, atol=1e-7)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_a_critic_value_under_the_mask_does_not_leak() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=DOUBLE)
    mask = torch.tensor([[False, True, True, False]])
    clean, _ = gae(rewards, torch.zeros(1, 4, dtype=DOUBLE), mask, gamma=1.0, lam=0.95)
    for garbage in (100.0, float("inf"), float("nan")):
        values = torch.tensor([[garbage, 0.0, 0.0, garbage]], dtype=DOUBLE)
        dirty, _ = gae(rewards, values, mask, gamma=1.0, lam=0.95)
        torch.testing.assert_close(dirty, clean)
    torch.testing.assert_close(clean, torch.tensor([[0.0, 0.95, 1.0, 0.0]], dtype=DOUBLE))


def test_with_lambda_1_the_return_is_the_discounted_sum_of_rewards_whatever_the_critic_says() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]], dtype=DOUBLE)
    for values in (torch.zeros(1, 3, dtype=DOUBLE), torch.tensor([[9.0, -3.0, 2.0]], dtype=DOUBLE)):
        _, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=1.0)
        torch.testing.assert_close(returns, torch.tensor([[3.0, 4.0, 4.0]], dtype=DOUBLE))


def test_group_baselines_against_loops() -> None:
    rng = np.random.default_rng(1)
    rewards, groups = rng.normal(size=12), np.array([7, 7, 7, 3, 3, 3, 9, 9, 9, 7, 3, 9])
    given = torch.from_numpy(rewards), torch.from_numpy(groups)
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        members = rewards[groups == group]
        others = [r for j, r in enumerate(rewards) if groups[j] == group and j != i]
        assert float(group_advantages(*given, kind="rloo")[i]) == pytest.approx(reward - np.mean(others))
        expected = (reward - members.mean()) / (members.std(ddof=1) + 1e-6)
        assert float(group_advantages(*given, kind="grpo")[i]) == pytest.approx(expected)
        assert float(group_advantages(*given, kind="reinforce")[i]) == pytest.approx(reward - rewards.mean())


def test_a_group_without_spread_gives_no_advantage() -> None:
    rewards, groups = torch.full((4,), 0.3), torch.tensor([0, 0, 1, 1])
    for kind in ("rloo", "grpo", "reinforce"):
        torch.testing.assert_close(group_advantages(rewards, groups, kind=kind), torch.zeros(4))
    alone = group_advantages(torch.tensor([2.0, 5.0]), torch.tensor([0, 1]), kind="rloo")
    torch.testing.assert_close(alone, torch.zeros(2))


def test_without_a_scale_grpo_only_subtracts_the_mean_of_its_group() -> None:
    """Dr. GRPO, equation 3."""
    scores, groups = np.array([1.0, 0.0, 0.0, 0.5, 0.9, 0.1]), np.array([0, 0, 0, 0, 1, 1])
    found = group_advantages(torch.from_numpy(scores), torch.from_numpy(groups), kind="grpo", scale="none")
    np.testing.assert_allclose(found, [0.625, -0.375, -0.375, 0.125, 0.4, -0.4], rtol=1e-12)


def test_penalties_are_part_of_the_reward_but_not_of_its_deviation() -> None:
    """In all but grpo this is the advantage of score - penalty; there a coefficient keeps its meaning in every group."""
    rng = np.random.default_rng(3)
    scores, penalties, groups = rng.normal(size=8), rng.normal(size=8), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    scores[:4] = 1.0
    s, p, g = (torch.from_numpy(x) for x in (scores, penalties, groups))
    for kind in ("rloo", "reinforce"):
        torch.testing.assert_close(
            group_advantages(s, g, kind=kind, penalties=p), group_advantages(s - p, g, kind=kind)
        )
    torch.testing.assert_close(
        group_advantages(s, g, kind="grpo", scale="none", penalties=p),
        group_advantages(s - p, g, kind="grpo", scale="none"),
    )
    found = group_advantages(s, g, kind="grpo", penalties=p)
    of_scores = group_advantages(s, g, kind="grpo")
    for group in (slice(0, 4), slice(4, 8)):
        np.testing.assert_allclose((of_scores - found)[group], penalties[group] - penalties[group].mean(), atol=1e-12)
    np.testing.assert_allclose(found[:4], penalties[:4].mean() - penalties[:4], atol=1e-12)


@pytest.mark.parametrize("score", [0.1, 0.3, 5.0, -7.3, 1e4, 0.0])
def test_rounding_among_equal_scores_is_no_advantage(score: float) -> None:
    """A scorer pads the same text otherwise from batch to batch: its float32 scores differ in the last bits."""
    exact = torch.full((3,), score)
    rounded = exact * torch.tensor([1.0, 1.0 + 3e-7, 1.0 - 2e-7])
    groups = torch.zeros(3, dtype=torch.long)
    for scores in (exact, rounded):
        assert equal_scores(scores, groups).tolist() == [True]
        assert group_advantages(scores, groups, kind="grpo").tolist() == [0.0, 0.0, 0.0]


def test_small_scores_that_differ_are_not_equal() -> None:
    scores, groups = torch.tensor([0.0, 1e-4, 1.0, 1.001, 2.0]), torch.tensor([9, 9, 2, 2, 5])
    assert equal_scores(scores, groups).tolist() == [False, True, False]
    assert group_advantages(scores, groups, kind="grpo")[:4].abs().min() > 0.5


def test_certainty_is_the_share_of_signal_in_a_noisy_score() -> None:
    """The slope of the regression of the true on the noisy score, with signal of variance 1 (Fuller 1987, section 1.1)."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=400_000)
    for spread in (0.0, 0.5, 2.0):
        noisy = true + spread * rng.normal(size=true.size)
        slope = np.cov(true, noisy)[0, 1] / noisy.var()
        found = certainty_weights(torch.tensor([spread], dtype=DOUBLE), weight=1.0)
        assert found.item() == pytest.approx(slope, abs=5e-3)


def test_certainty_at_its_limits() -> None:
    spreads = torch.tensor([0.0, 0.3, 1.0, 1e30, torch.nan], dtype=torch.float32)
    assert torch.equal(certainty_weights(spreads, weight=0.0)[[0, 1, 2, 4]], torch.ones(4))
    found = certainty_weights(spreads, weight=4.0)
    assert found[[0, 2, 3, 4]].tolist() == pytest.approx([1.0, 0.2, 0.0, 1.0])
    assert (found[:-2].diff() < 0).all()
