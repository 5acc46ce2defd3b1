"""What is made of a batch before the update, against numbers worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learner_lab import hand_made, run_config, scored

from rayrlhf.algorithms.rewards import RunningMoments
from rayrlhf.config import PPOConfig
from rayrlhf.errors import NonFiniteError
from rayrlhf.learner.ppo_batch import Estimates, PPOBatch, batch_figures, make_batch, make_targets
from rayrlhf.types import SampleId, ScoredTrajectory


def settings(**ppo: Any) -> PPOConfig:
    return run_config({"normalize_reward": False, "whiten_advantages": False, **ppo}).ppo


def two_samples(**second: Any) -> list[ScoredTrajectory]:
    """Prompts of 2 and 1 tokens; responses of 2 and 3."""
    prompt = np.array([5, 6], dtype=np.int32)
    return [
        scored(
            SampleId("ppo", 0, 0, 0),
            prompt=prompt,
            response=np.array([7, 8], dtype=np.int32),
            rollout_logprobs=np.array([-1.0, -2.0]),
            ref_logprobs=np.array([-1.5, -1.0]),
            score=2.0,
        ),
        scored(
            SampleId("ppo", 0, 0, 1),
            prompt=prompt[:1],
            response=np.array([9, 10, 11], dtype=np.int32),
            rollout_logprobs=np.array([-3.0, -1.0, -1.0]),
            ref_logprobs=np.array([-3.0, -1.0, -2.0]),
            score=-1.0,
            **second,
        ),
    ]


def estimates(batch: PPOBatch, *, values: float = 0.0, end_values: Sequence[float] | None = None) -> Estimates:
    return Estimates(
        old_logprobs=batch.rollout_logprobs.clone(),
        entropy=1.0,
        values=torch.where(batch.response_mask, values, 0.0),
        end_values=torch.tensor(end_values or [0.0] * len(batch.sequences)),
    )


def targets(scored_: list[ScoredTrajectory], config: PPOConfig, *, kl_coef: float = 0.0, **of: Any) -> Any:
    batch = make_batch(scored_, mask_truncated=config.truncation == "mask")
    return make_targets(batch, estimates(batch, **of), config, kl_coef=kl_coef, moments=None)


def test_layout() -> None:
    batch = make_batch(two_samples(), mask_truncated=False)
    assert batch.response_mask.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert batch.rollout_logprobs.tolist() == [[0, 0, -1, -2], [0, -3, -1, -1]]
    assert batch.ref_logprobs.tolist() == [[0, 0, -1.5, -1], [0, -3, -1, -2]]
    assert batch.groups.tolist() == [0, 0]
    assert batch.trained_rows.tolist() == [0, 1]


def test_groups_are_prompts_of_a_step() -> None:
    samples = hand_made(4, seed=1, per_prompt=2)
    later = replace(samples[3], trajectory=replace(samples[3].trajectory, sample_id=SampleId("ppo", 1, 0, 0)))
    assert make_batch([*samples[:3], later], mask_truncated=False).groups.tolist() == [0, 0, 1, 2]


def test_reward_is_score_at_the_last_token_minus_kl() -> None:
    """k1 is old - ref: row 0 has 0.5 and -1, row 1 has 0, 0 and 1; undiscounted returns are rewards to go."""
    config = settings(gamma=1.0, lam=1.0)
    found, figures = targets(two_samples(), config, kl_coef=0.1)
    expected = torch.tensor([[0, 0, 2.1 - 0.05, 2.1], [0, -1.1, -1.1, -1.1]])
    assert torch.allclose(found.returns, expected)
    assert torch.allclose(found.advantages, expected)
    assert figures["reward/total"] == pytest.approx((2.05 - 1.1) / 2)
    assert figures["policy/advantage_mean"] == pytest.approx((2.05 + 2.1 - 3.3) / 5)


def test_kl_in_the_loss_leaves_the_reward_alone() -> None:
    config = settings(gamma=1.0, lam=1.0, kl={"placement": "loss", "estimator": "k3"})
    found, _ = targets(two_samples(), config, kl_coef=0.1)
    assert torch.allclose(found.returns, torch.tensor([[0, 0, 2.0, 2.0], [0, -1.0, -1.0, -1.0]]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("reinforce", [1.575, -1.575]), ("rloo", [3.15, -3.15]), ("grpo", [0.5**0.5, -(0.5**0.5)])],
)
def test_group_advantages_are_of_the_shaped_response_reward(kind: str, expected: list[float]) -> None:
    """Rewards 2.05 and -1.1, both of one prompt; every token carries its response's advantage."""
    found, _ = targets(two_samples(), settings(advantage=kind), kl_coef=0.1)
    assert torch.allclose(found.advantages[0, 2:], torch.full((2,), expected[0]), atol=1e-5)
    assert torch.allclose(found.advantages[1, 1:], torch.full((3,), expected[1]), atol=1e-5)


def test_bootstrap_continues_a_cut_response_with_the_critic() -> None:
    """gamma 1, lambda 1: the return of row 1 is its score plus the value after its last token."""
    samples = two_samples(finish="length")
    plain, _ = targets(samples, settings(gamma=1.0, lam=1.0), end_values=(10.0, 20.0))
    bootstrapped, _ = targets(samples, settings(gamma=1.0, lam=1.0, truncation="bootstrap"), end_values=(10.0, 20.0))
    assert torch.allclose(plain.returns[1, 1:], torch.full((3,), -1.0))
    assert torch.allclose(bootstrapped.returns[1, 1:], torch.full((3,), 19.0))
    assert torch.allclose(bootstrapped.returns[0], plain.returns[0])


def test_missing_end_is_penalised_after_the_clip() -> None:
    config = settings(gamma=1.0, lam=1.0, missing_eos_penalty=3.0, reward_clip=0.5)
    found, _ = targets(two_samples(finish="length"), config)
    assert torch.allclose(found.returns[0, 2:], torch.full((2,), 0.5))
    assert torch.allclose(found.returns[1, 1:], torch.full((3,), -3.5))


def test_scores_are_normalised_by_moments() -> None:
    batch = make_batch(two_samples(), mask_truncated=False)
    config = settings(gamma=1.0, lam=1.0)
    moments = RunningMoments(count=4, mean=1.0, m2=16.0)  # deviation 2
    found, _ = make_targets(batch, estimates(batch), config, kl_coef=0.0, moments=moments)
    assert torch.allclose(found.returns[:, 3], torch.tensor([0.5, -1.0]))


def test_masked_rows_reach_no_baseline() -> None:
    samples = hand_made(6, seed=3, truncated=[1, 4], per_prompt=3)
    finished = [item for i, item in enumerate(samples) if i not in (1, 4)]
    for kind in ("rloo", "grpo", "reinforce"):
        config = settings(advantage=kind, truncation="mask", whiten_advantages=True, samples_per_prompt=4)
        with_masked, a = targets(samples, config, kl_coef=0.1)
        without, b = targets(finished, config, kl_coef=0.1)
        kept = with_masked.advantages[[0, 2, 3, 5]][:, : without.advantages.shape[1]]
        assert torch.allclose(kept, without.advantages, atol=1e-6)
        assert not with_masked.advantages[[1, 4]].any()
        assert a == pytest.approx(b, abs=1e-6)


def test_whitening_spans_the_valid_tokens_of_the_batch() -> None:
    found, _ = targets(two_samples(), settings(whiten_advantages=True, gamma=1.0, lam=1.0))
    raw = np.array([2.0, 2.0, -1.0, -1.0, -1.0])
    expected = (raw - raw.mean()) / raw.std()
    mask = make_batch(two_samples(), mask_truncated=False).loss_mask
    assert torch.allclose(found.advantages[mask], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_importance_corrects_only_what_the_ratio_does_not() -> None:
    """With the engine's log-probs as denominator the ratio holds the whole correction; a second one would square it."""
    batch = make_batch(two_samples(), mask_truncated=False)
    gap = replace(estimates(batch), old_logprobs=torch.where(batch.response_mask, batch.rollout_logprobs + 0.5, 0.0))
    recompute = settings(importance_cap=1.2)
    found, figures = make_targets(batch, gap, recompute, kl_coef=0.0, moments=None)
    assert found.importance[batch.loss_mask].tolist() == pytest.approx([1.2] * 5)
    assert figures["mismatch/importance_weight"] == pytest.approx(1.2)
    rollout = settings(importance_cap=1.2, old_logprobs="rollout")
    found, _ = make_targets(batch, gap, rollout, kl_coef=0.0, moments=None)
    assert found.importance[batch.loss_mask].tolist() == pytest.approx([1.0] * 5)
    assert torch.equal(found.denominator, batch.rollout_logprobs)


def test_figures_of_a_batch() -> None:
    samples = two_samples(finish="length", version=3, gold=0.25)
    batch = make_batch(samples, mask_truncated=False)
    figures = batch_figures(batch, estimates(batch), samples, version=4)
    assert figures["reward/score"] == 0.5
    assert figures["reward/score_std"] == 1.5
    assert figures["reward/gold"] == 0.25
    assert figures["kl/reference"] == pytest.approx((-0.5 + 1.0) / 2)
    assert figures["kl/reference_token"] == pytest.approx(0.5 / 5)
    assert figures["rollout/length"] == 2.5
    assert figures["rollout/length_max"] == 3.0
    assert figures["rollout/truncated"] == 0.5
    assert figures["rollout/staleness"] == 4.0
    assert figures["rollout/version"] == 3.0
    assert figures["mismatch/max"] == 0.0


@pytest.mark.parametrize("where", ["score", "engine", "reference"])
def test_what_is_not_finite_is_named_and_refused(where: str) -> None:
    samples = two_samples()
    bad = np.array([-1.0, np.nan, -1.0], dtype=np.float32)
    if where == "score":
        samples[1] = replace(samples[1], score=float("nan"))
    elif where == "engine":
        samples[1] = replace(samples[1], trajectory=replace(samples[1].trajectory, rollout_logprobs=bad))
    else:
        samples[1] = replace(samples[1], ref_logprobs=bad)
    with pytest.raises(NonFiniteError, match=rf"{where}.*ppo-0-0-1"):
        make_batch(samples, mask_truncated=False)
