"""However a batch is cut up, and in whatever order it comes: the gradients are the same, for every estimator."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from learner_lab import hand_made, policy_model, ppo_learner

from rayrlhf.types import ScoredTrajectory

KINDS = pytest.mark.parametrize("kind", ["gae", "rloo", "grpo", "reinforce"])
AGGREGATIONS = pytest.mark.parametrize("aggregation", ["token", "sequence"])
SAMPLES = hand_made(16, seed=1, truncated=[3, 10], per_prompt=4)


def gradients(samples: list[ScoredTrajectory], **ppo: Any) -> list[torch.Tensor]:
    """Of the policy and, where there is one, the critic: before each optimizer step, unclipped, flat."""
    options: dict[str, Any] = {"samples_per_prompt": 4, "prompts_per_step": 4, "epochs": 1, "minibatches": 2}
    learner = ppo_learner(options | {"optim": {"lr": 1.0e-3, "eps": 1.0e-4, "schedule": "constant"}} | ppo)
    found = []
    for trained in (learner._policy, learner._critic):
        if trained is None:
            continue

        def step(trained: Any = trained, step: Any = trained.step) -> Any:
            found.append(
                torch.cat([p.grad.flatten().clone() for p in trained.model.parameters() if p.grad is not None])
            )
            return step()

        trained.step = step  # type: ignore[method-assign]
    learner.update(0, samples)
    return found


def shuffled(samples: list[ScoredTrajectory]) -> list[ScoredTrajectory]:
    return random.Random(5).sample(samples, len(samples))


@KINDS
@AGGREGATIONS
def test_splitting_a_batch_otherwise_changes_no_gradient(kind: str, aggregation: str) -> None:
    """Passes of two responses, of four, of all; rows as other workers would have sent them."""
    options: dict[str, Any] = {"advantage": kind, "loss_aggregation": aggregation, "entropy_coef": 0.01}
    options["kl"] = {"coef": 0.1}
    whole = gradients(SAMPLES, micro_batch_tokens=4096, **options)
    assert len(whole) == (4 if kind == "gae" else 2)
    for budget, samples in ((32, SAMPLES), (56, SAMPLES), (4096, SAMPLES[::-1]), (32, shuffled(SAMPLES))):
        for expected, found in zip(whole, gradients(samples, micro_batch_tokens=budget, **options), strict=True):
            assert float((found - expected).norm() / expected.norm()) < 1e-4


BANDS: dict[str, Any] = {"importance_band": [0.5, 5.0], "sequence_band": [0.7, 1.5], "importance_cap": 2.0}


@AGGREGATIONS
def test_masks_change_the_policy_alone_and_no_split_changes_them(aggregation: str) -> None:
    """In the first minibatch, before the two learners differ: the critic learns from masked tokens as from the others."""
    options: dict[str, Any] = {"loss_aggregation": aggregation, "minibatches": 1}
    whole = gradients(SAMPLES, micro_batch_tokens=4096, **options, **BANDS)
    for budget, samples in ((32, SAMPLES), (56, shuffled(SAMPLES))):
        for expected, found in zip(
            whole, gradients(samples, micro_batch_tokens=budget, **options, **BANDS), strict=True
        ):
            assert float((found - expected).norm() / expected.norm()) < 1e-4
    weighted, critic = gradients(SAMPLES, micro_batch_tokens=4096, **options, importance_cap=2.0)
    assert torch.equal(whole[1], critic)
    assert float((whole[0] - weighted).norm() / weighted.norm()) > 0.05


def test_where_all_is_masked_the_policy_stays_and_the_critic_learns() -> None:
    narrow = {"importance_band": [1 - 1e-9, 1 + 1e-9], "minibatches": 1, "kl": {"coef": 0.0}}
    policy, critic = gradients(SAMPLES, **narrow)
    assert not policy.any()
    assert critic.any()


@KINDS
def test_the_two_aggregations_are_not_the_same(kind: str) -> None:
    token, sequence = (gradients(SAMPLES, advantage=kind, loss_aggregation=name)[0] for name in ("token", "sequence"))
    assert float((token - sequence).norm() / token.norm()) > 0.05


@AGGREGATIONS
@pytest.mark.parametrize("scale", ["std", "none"])
def test_grpo_equals_autograd_over_one_unpadded_response_at_a_time(aggregation: str, scale: str) -> None:
    """The published loss in float64, written out: GRPO (Shao et al. 2024, equation 3) is `sequence` with `std`."""
    coef, model = 0.04, policy_model().double()
    scores = np.array([item.score for item in SAMPLES]).reshape(-1, 4)
    advantages = scores - scores.mean(axis=1, keepdims=True)
    if scale == "std":
        advantages = advantages / (scores.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    tokens = sum(len(item.trajectory.response_ids) for item in SAMPLES)
    for item, advantage in zip(SAMPLES, advantages.flatten(), strict=True):
        prompt, response = item.trajectory.prompt_ids, item.trajectory.response_ids
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        rows = model(ids[None]).logits[0, :-1].log_softmax(-1)
        logprobs = rows.gather(-1, ids[1:, None]).squeeze(-1)[len(prompt) - 1 :]
        log_ref = torch.from_numpy(item.ref_logprobs).double() - logprobs
        loss = -(logprobs - logprobs.detach()).exp() * advantage + coef * (log_ref.exp() - log_ref - 1)
        share = len(SAMPLES) * len(response) if aggregation == "sequence" else tokens
        (loss.sum() / share).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    (found,) = gradients(
        SAMPLES,
        advantage="grpo",
        loss_aggregation=aggregation,
        scale=scale,
        minibatches=1,
        kl={"coef": coef},
        micro_batch_tokens=48,
    )
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-4
