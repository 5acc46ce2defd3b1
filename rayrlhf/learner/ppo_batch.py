"""A batch of experience as the PPO learner holds it: what came in, and what was estimated from it before the update."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rayrlhf.algorithms.advantages import gae, group_advantages
from rayrlhf.algorithms.kl import kl_estimate
from rayrlhf.algorithms.masking import masked_mean, masked_sum, whiten
from rayrlhf.algorithms.mismatch import Mismatch, mismatch_quantiles
from rayrlhf.algorithms.policy_loss import importance_weights
from rayrlhf.algorithms.rewards import RunningMoments, normalize_scores, penalize_truncated, token_rewards
from rayrlhf.algorithms.value_loss import explained_variance
from rayrlhf.config import PPOConfig
from rayrlhf.data.batching import collate
from rayrlhf.errors import NonFiniteError
from rayrlhf.types import MicroBatch, ScoredTrajectory, Trajectory


@dataclass(frozen=True, kw_only=True)
class PPOBatch:
    """All experience of one step, right-padded, in the order it came."""

    sequences: list[np.ndarray]
    """Prompt and response ids of each sample."""
    starts: list[int]
    """Prompt lengths."""
    response_mask: Bool[Tensor, "batch time"]
    """Every response token."""
    loss_mask: Bool[Tensor, "batch time"]
    """The response tokens that are trained: a row's all or none, where truncated responses are left out."""
    rollout_logprobs: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]
    scores: Float[Tensor, " batch"]
    truncated: Bool[Tensor, " batch"]
    groups: Int[Tensor, " batch"]
    """Which samples answer the same prompt."""

    @property
    def trained_rows(self) -> Int[Tensor, " trained"]:
        """Which samples are trained; the others reach no mean, no deviation and no baseline either."""
        return self.loss_mask.any(dim=1).nonzero().squeeze(1)


def rows_or_nothing(sequences: Sequence[np.ndarray], starts: Sequence[int], indices: Sequence[int]) -> MicroBatch:
    """A micro-batch of the sequences at `indices`, or one that trains nothing, for a rank with nothing to do."""
    if indices:
        return collate(sequences, starts, indices)
    return collate([np.zeros(1, dtype=np.int32)], [1], [0])


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What the models said of a batch before the update."""

    old_logprobs: Float[Tensor, "batch time"]
    """The learner's own, recomputed."""
    entropy: float
    values: Float[Tensor, "batch time"]
    end_values: Float[Tensor, " batch"]
    """The critic's value after the last token."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the update aims at."""

    denominator: Float[Tensor, "batch time"]
    """Log-probs the ratio is taken against."""
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]
    importance: Float[Tensor, "batch time"] | None


def make_batch(scored: Sequence[ScoredTrajectory], *, mask_truncated: bool) -> PPOBatch:
    """Lay out scored trajectories as one right-padded batch; NonFiniteError if what came in is not finite."""
    for item in scored:
        _check_finite(item)
    trajectories = [item.trajectory for item in scored]
    sequences, starts = sequences_of(trajectories)
    whole = collate(sequences, starts, range(len(sequences)))
    truncated = torch.tensor([t.finish == "length" for t in trajectories])
    keep = ~truncated.unsqueeze(1) if mask_truncated else torch.ones_like(truncated).unsqueeze(1)
    prompts = [(t.sample_id.step, t.sample_id.prompt_id) for t in trajectories]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return PPOBatch(
        sequences=sequences,
        starts=starts,
        response_mask=whole.loss_mask,
        loss_mask=whole.loss_mask & keep,
        rollout_logprobs=spread([t.rollout_logprobs for t in trajectories], whole.loss_mask),
        ref_logprobs=spread([item.ref_logprobs for item in scored], whole.loss_mask),
        scores=torch.tensor([item.score for item in scored], dtype=torch.float32),
        truncated=truncated,
        groups=torch.tensor([numbers[prompt] for prompt in prompts]),
    )


def _check_finite(item: ScoredTrajectory) -> None:
    """One such value would stay in the running moments of the score, or in the weights."""
    values: dict[str, np.ndarray | float] = {
        "score": item.score,
        "engine log-probs": item.trajectory.rollout_logprobs,
        "reference log-probs": item.ref_logprobs,
    }
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(f"The {name} of sample {item.trajectory.sample_id} are not finite: {value}.")


def sequences_of(trajectories: Sequence[Trajectory]) -> tuple[list[np.ndarray], list[int]]:
    """Full token sequences and prompt lengths."""
    sequences = [np.concatenate([t.prompt_ids, t.response_ids]) for t in trajectories]
    return sequences, [len(t.prompt_ids) for t in trajectories]


def spread(rows: Sequence[np.ndarray], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Per-response arrays [R] laid out under their tokens, 0 elsewhere."""
    flat = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.float32) for row in rows]))
    return torch.zeros(mask.shape).masked_scatter(mask, flat)


def gathered(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> list[np.ndarray]:
    """The reverse of `spread`."""
    return [row[valid].numpy() for row, valid in zip(values, mask, strict=True)]


def make_targets(
    batch: PPOBatch, estimates: Estimates, config: PPOConfig, *, kl_coef: float, moments: RunningMoments | None
) -> tuple[Targets, dict[str, float]]:
    """Rewards, advantages and returns of a batch, and their figures."""
    mask = batch.loss_mask
    kl = torch.where(mask, kl_estimate(estimates.old_logprobs, batch.ref_logprobs, kind="k1"), 0.0)
    scores = normalize_scores(batch.scores, moments, clip=config.reward_clip)
    scores = penalize_truncated(scores, batch.truncated, penalty=config.missing_eos_penalty)
    reward_kl_coef = kl_coef if config.kl.placement == "reward" else 0.0
    rewards = token_rewards(scores, kl, mask, kl_coef=reward_kl_coef)
    kept = batch.trained_rows
    figures = {"reward/total": float(rewards[kept].sum(dim=1).mean())} if len(kept) else {}
    if config.advantage == "gae":
        bootstrap = (
            torch.where(batch.truncated, estimates.end_values, 0.0) if config.truncation == "bootstrap" else None
        )
        advantages, returns = gae(
            rewards, estimates.values, mask, gamma=config.gamma, lam=config.lam, bootstrap=bootstrap
        )
        figures["critic/explained_variance"] = explained_variance(estimates.values, returns, mask)
        figures["critic/value_mean"] = float(masked_mean(estimates.values, mask))
    else:
        per_response = torch.zeros_like(scores)
        per_response[kept] = group_advantages(rewards.sum(dim=1)[kept], batch.groups[kept], kind=config.advantage)
        advantages = torch.where(mask, per_response.unsqueeze(1), 0.0)
        returns = torch.zeros_like(advantages)
    mean = masked_mean(advantages, mask)
    figures["policy/advantage_mean"] = float(mean)
    figures["policy/advantage_std"] = float(
        masked_mean(torch.where(mask, advantages - mean, 0.0).square(), mask).sqrt()
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    denominator = estimates.old_logprobs if config.old_logprobs == "recompute" else batch.rollout_logprobs
    importance = None
    figures["mismatch/importance_weight"] = 1.0
    cap = config.effective_importance_cap
    if cap is not None:
        importance = importance_weights(denominator, batch.rollout_logprobs, mask, cap=cap)
        figures["mismatch/importance_weight"] = float(masked_mean(importance, mask))
    return Targets(denominator=denominator, advantages=advantages, returns=returns, importance=importance), figures


def batch_figures(
    batch: PPOBatch, estimates: Estimates, scored: Sequence[ScoredTrajectory], *, version: int
) -> dict[str, float]:
    """What a batch is like, before anything is made of it."""
    trajectories = [item.trajectory for item in scored]
    lengths = [len(t.response_ids) for t in trajectories]
    mask = batch.response_mask
    kl = kl_estimate(estimates.old_logprobs, batch.ref_logprobs, kind="k1")
    figures = {
        "reward/score": float(batch.scores.mean()),
        "reward/score_std": float(batch.scores.std(correction=0)),
        "kl/reference": float(masked_sum(kl, mask) / len(scored)),
        "kl/reference_token": float(masked_mean(kl, mask)),
        "policy/entropy": estimates.entropy,
        "rollout/length": float(np.mean(lengths)),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated": float(batch.truncated.float().mean()),
        "rollout/staleness": float(version - min(t.min_version for t in trajectories)),
        "rollout/version": float(max(span.version for t in trajectories for span in t.version_spans)),
    }
    spreads = [item.spread for item in scored if item.spread is not None]
    if spreads:
        figures["reward/spread"] = float(np.mean(spreads))
    golds = [item.gold for item in scored if item.gold is not None]
    if golds:
        figures["reward/gold"] = float(np.mean(golds))
    gap: Mismatch = mismatch_quantiles(gathered(batch.rollout_logprobs, mask), gathered(estimates.old_logprobs, mask))
    return figures | {
        "mismatch/p50": gap.p50,
        "mismatch/p95": gap.p95,
        "mismatch/p99": gap.p99,
        "mismatch/max": gap.max,
        "mismatch/outside": gap.outside,
    }
