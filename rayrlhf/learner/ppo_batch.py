"""A batch of experience as the PPO learner holds it: what came in, and what was estimated from it before the update."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rayrlhf.algorithms.advantages import certainty_weights, equal_scores, gae, group_advantages
from rayrlhf.algorithms.kl import kl_estimate, sampled_kl
from rayrlhf.algorithms.masking import masked_mean, whiten
from rayrlhf.algorithms.mismatch import mismatch_quantiles
from rayrlhf.algorithms.off_policy import off_policy_weights, probability_ratio, responses_inside, tokens_inside
from rayrlhf.algorithms.pass_rate import is_binary, pass_at_k, pass_rate
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
    spreads: Float[Tensor, " batch"]
    """How far the members of the ensemble that scored it differ; NaN where none did."""
    truncated: Bool[Tensor, " batch"]
    groups: Int[Tensor, " batch"]
    """Which samples answer the same prompt."""
    versions: Int[Tensor, "batch time"]
    """The policy version that drew each response token; -1 elsewhere."""

    @property
    def trained_rows(self) -> Int[Tensor, " trained"]:
        """Which samples are trained; the others reach no mean, no deviation and no baseline either."""
        return self.loss_mask.any(dim=1).nonzero().squeeze(1)

    def scored_rows(self, truncation: str) -> Bool[Tensor, " batch"]:
        """Which samples are trained on their score; the score of another reaches nothing, the running moments included."""
        trained = self.loss_mask.any(dim=1)
        return trained & ~self.truncated if truncation == "bootstrap" else trained


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
    """What each token's clipped objective is multiplied by, 0 where it is masked; None where there is no correction."""
    stale_ratio: Float[Tensor, "batch time"] | None
    """Probability of a token under the denominator over that when an older version drew it; None where none did."""


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
        spreads=torch.tensor(
            [math.nan if item.spread is None else item.spread for item in scored], dtype=torch.float32
        ),
        truncated=truncated,
        groups=torch.tensor([numbers[prompt] for prompt in prompts]),
        versions=torch.full(whole.loss_mask.shape, -1).masked_scatter(
            whole.loss_mask, torch.from_numpy(np.concatenate([_versions(t) for t in trajectories]))
        ),
    )


def _versions(trajectory: Trajectory) -> np.ndarray:
    versions = np.full(len(trajectory.response_ids), -1, dtype=np.int64)
    for span in trajectory.version_spans:
        versions[span.start : span.end] = span.version
    return versions


def _check_finite(item: ScoredTrajectory) -> None:
    """One such value would stay in the running moments of the score, or in the weights."""
    values: dict[str, np.ndarray | float] = {
        "score": item.score,
        "engine log-probs": item.trajectory.rollout_logprobs,
        "reference log-probs": item.ref_logprobs,
        "ensemble's spread": 0.0 if item.spread is None else item.spread,
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


def make_targets(
    batch: PPOBatch,
    estimates: Estimates,
    config: PPOConfig,
    *,
    kl_coef: float,
    moments: RunningMoments | None,
    version: int | None = None,
) -> tuple[Targets, dict[str, float]]:
    """Rewards, advantages and returns of a batch, and their figures.

    Tokens of a version other than `version`, where given, are stale.
    """
    mask = batch.loss_mask
    kl = torch.where(mask, kl_estimate(estimates.old_logprobs, batch.ref_logprobs, kind="k1"), 0.0)
    scores = normalize_scores(batch.scores, moments, clip=config.reward_clip)
    scores = penalize_truncated(scores, batch.truncated, penalty=config.missing_eos_penalty)
    scores = torch.where(batch.scored_rows(config.truncation), scores, 0.0)
    reward_kl_coef = kl_coef if config.kl.placement == "reward" else 0.0
    advantages, returns, figures = _advantages(batch, estimates, config, scores, kl, kl_coef=reward_kl_coef)
    mean = masked_mean(advantages, mask)
    figures["policy/advantage_mean"] = float(mean)
    figures["policy/advantage_std"] = float(
        masked_mean(torch.where(mask, advantages - mean, 0.0).square(), mask).sqrt()
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    if config.uncertainty_weight:
        weights = _certainty(batch, config)
        advantages = advantages * weights.unsqueeze(1)
        if len(batch.trained_rows):
            figures["policy/certainty"] = float(weights[batch.trained_rows].mean())
    denominator = estimates.old_logprobs if config.old_logprobs == "recompute" else batch.rollout_logprobs
    importance = _importance(denominator, batch, config)
    figures["mismatch/importance_weight"] = 1.0 if importance is None else float(masked_mean(importance, mask))
    figures |= _masked_figures(denominator, batch, config)
    stale = mask & (batch.versions != version) if version is not None else torch.zeros_like(mask)
    targets = Targets(
        denominator=denominator,
        advantages=advantages,
        returns=returns,
        importance=importance,
        stale_ratio=probability_ratio(denominator, batch.rollout_logprobs, stale) if stale.any() else None,
    )
    return targets, figures


def _advantages(
    batch: PPOBatch,
    estimates: Estimates,
    config: PPOConfig,
    scores: Float[Tensor, " batch"],
    kl: Float[Tensor, "batch time"],
    *,
    kl_coef: float,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"], dict[str, float]]:
    """Advantages before whitening, returns, and their figures, by the estimator of `config.advantage`."""
    mask, kept = batch.loss_mask, batch.trained_rows
    rewards = token_rewards(scores, kl, mask, kl_coef=kl_coef)
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
        return advantages, returns, figures
    per_response = torch.zeros_like(scores)
    per_response[kept] = group_advantages(
        scores[kept],
        batch.groups[kept],
        kind=config.advantage,
        scale=config.scale,
        penalties=kl_coef * kl.sum(dim=1)[kept],
    )
    advantages = torch.where(mask, per_response.unsqueeze(1), 0.0)
    return advantages, torch.zeros_like(advantages), figures


def _certainty(batch: PPOBatch, config: PPOConfig) -> Float[Tensor, " batch"]:
    """What is left of each sample's advantages; all where its score is not what it is trained on.

    They are weighted last. Whitening after it would shift what was taken to 0 away from there, which pushes samples that
    nothing is known of, and would undo a weight that is the same for all. Baselines, returns and so the critic are of
    the scores as they are: what a response is worth does not depend on how far its score is trusted.
    """
    weights = certainty_weights(batch.spreads, weight=config.uncertainty_weight)
    return torch.where(batch.scored_rows(config.truncation), weights, 1.0)


def _importance(
    denominator: Float[Tensor, "batch time"], batch: PPOBatch, config: PPOConfig
) -> Float[Tensor, "batch time"] | None:
    """`Targets.importance`.

    The masks reach the policy's objective alone. The critic goes on learning from masked tokens: its target is the
    return that followed, of whichever version drew it, as for every stale token, and holds no ratio that could be far
    off; a critic of the kept tokens alone would expect what follows where the policies happen to agree. Baselines and
    whitening are of returns too, and keep them for the same reason.
    """
    if not config.corrects_off_policy:
        return None
    return off_policy_weights(
        denominator,
        batch.rollout_logprobs,
        batch.loss_mask,
        cap=config.effective_importance_cap,
        band=config.importance_band,
        sequence_band=config.sequence_band,
    )


def batch_figures(
    batch: PPOBatch, estimates: Estimates, scored: Sequence[ScoredTrajectory], *, version: int
) -> dict[str, float]:
    """What a batch is like, before version `version` of the learner is trained on it.

    Samples come from the versions that drew them, up to `ppo.max_staleness` before the learner's: a figure of the
    learner's policy weighs their tokens, or keeps to those of its own version, and is absent where too little is left.
    """
    trajectories = [item.trajectory for item in scored]
    lengths = [len(t.response_ids) for t in trajectories]
    figures = {
        "reward/score": float(batch.scores.mean()),
        "reward/score_std": float(batch.scores.std(correction=0)),
        "policy/entropy": estimates.entropy,
        "rollout/length": float(np.mean(lengths)),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated": float(batch.truncated.float().mean()),
        "rollout/staleness": float(version - min(t.min_version for t in trajectories)),
        "rollout/version": float(max(span.version for t in trajectories for span in t.version_spans)),
        "rollout/spans": float(np.mean([len(t.version_spans) for t in trajectories])),
        "rollout/spans_max": float(max(len(t.version_spans) for t in trajectories)),
    }
    spreads = [item.spread for item in scored if item.spread is not None]
    if spreads:
        figures["reward/spread"] = float(np.mean(spreads))
    golds = [item.gold for item in scored if item.gold is not None]
    if golds:
        figures["reward/gold"] = float(np.mean(golds))
    figures |= _group_figures(batch) | _comparison_figures(scored) | _staleness_figures(batch, version)
    return figures | _kl_figures(batch, estimates, version) | _mismatch_figures(batch, estimates, version)


def pass_figures(scored: Sequence[ScoredTrajectory], *, k: int) -> dict[str, float]:
    """Pass rate and pass@k of a batch; nothing where a score is neither 0 nor 1."""
    scores = [item.verdict for item in scored]
    if not is_binary(scores):
        return {}
    by_prompt: dict[tuple[int, int], list[float]] = defaultdict(list)
    for item, score in zip(scored, scores, strict=True):
        sample = item.trajectory.sample_id
        by_prompt[sample.step, sample.prompt_id].append(score)
    groups = list(by_prompt.values())
    rate = pass_rate(groups)
    figures = {
        "reward/pass_rate": rate.value,
        "reward/pass_rate_low": rate.low,
        "reward/pass_rate_high": rate.high,
        "reward/pass_n": float(rate.count),
    }
    best = pass_at_k(groups, k)
    if k > 1 and best is not None:
        figures |= {
            "reward/pass_at_k": best.value,
            "reward/pass_at_k_low": best.low,
            "reward/pass_at_k_high": best.high,
            "reward/pass_at_k_n": float(best.count),
        }
    return figures


def gathered(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> list[np.ndarray]:
    """The reverse of `spread`."""
    return [row[valid].numpy() for row, valid in zip(values, mask, strict=True)]


def _masked_figures(denominator: Float[Tensor, "batch time"], batch: PPOBatch, config: PPOConfig) -> dict[str, float]:
    """What each band takes of what is trained, whatever the other takes too."""
    figures: dict[str, float] = {}
    mask, rows = batch.loss_mask, batch.trained_rows
    if config.importance_band is not None and len(rows):
        kept = tokens_inside(denominator, batch.rollout_logprobs, mask, band=config.importance_band)
        figures["mismatch/masked_tokens"] = float((~kept[mask]).double().mean())
    if config.sequence_band is not None and len(rows):
        whole = responses_inside(denominator, batch.rollout_logprobs, mask, band=config.sequence_band)
        figures["mismatch/masked_responses"] = float((~whole[rows]).double().mean())
    return figures


def _staleness_figures(batch: PPOBatch, version: int) -> dict[str, float]:
    """Of the tokens that are trained: the update learns from no others."""
    behind = (version - batch.versions)[batch.loss_mask]
    if not len(behind):
        return {}
    return {
        "staleness/mean": float(behind.double().mean()),
        "staleness/max": float(behind.max()),
        **{f"staleness/share_{k}": float((behind == k).double().mean()) for k in range(4)},
        "staleness/share_4_or_more": float((behind >= 4).double().mean()),
    }


def _kl_figures(batch: PPOBatch, estimates: Estimates, version: int) -> dict[str, float]:
    mask = batch.response_mask
    stale = batch.versions != version
    log_weights = torch.where(stale, estimates.old_logprobs - batch.rollout_logprobs, 0.0)
    k1 = kl_estimate(estimates.old_logprobs, batch.ref_logprobs, kind="k1")
    figures = {"kl/behaviour": float((batch.rollout_logprobs - batch.ref_logprobs)[mask].double().sum() / len(mask))}
    kl = sampled_kl(gathered(k1, mask), gathered(log_weights, mask))
    return figures if kl is None else figures | {"kl/reference": kl.response, "kl/reference_token": kl.token}


def _mismatch_figures(batch: PPOBatch, estimates: Estimates, version: int) -> dict[str, float]:
    """Tokens of older versions differ by what was learnt since, which is no fault of the engine."""
    current = batch.response_mask & (batch.versions == version)
    if not current.any():
        return {}
    gap = mismatch_quantiles(gathered(batch.rollout_logprobs, current), gathered(estimates.old_logprobs, current))
    return {
        "mismatch/p50": gap.p50,
        "mismatch/p95": gap.p95,
        "mismatch/p99": gap.p99,
        "mismatch/max": gap.max,
        "mismatch/outside": gap.outside,
    }


def _comparison_figures(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """What judges' comparisons say of the judges; each counts once for every response of the batch that is in it."""
    compared = [item.comparisons for item in scored if item.comparisons is not None]
    if not compared:
        return {}
    whole = reduce(add, compared)
    return {
        "reward/position_bias": whole.bias / whole.read,
        "reward/position_flips": whole.flipped / whole.read,
        "reward/comparisons_unread": 1.0 - whole.read / whole.asked,
    }


def _group_figures(batch: PPOBatch) -> dict[str, float]:
    """Over prompts with at least two responses; a group whose scores are all equal teaches a group baseline nothing."""
    scores, groups = batch.scores[batch.trained_rows], batch.groups[batch.trained_rows]
    names, sizes = groups.unique(return_counts=True)
    several = sizes >= 2
    if not several.any():
        return {}
    deviations = torch.stack([scores[groups == name].double().std() for name in names[several]])
    return {
        "reward/groups_equal": float(equal_scores(scores, groups)[several].double().mean()),
        "reward/group_std": float(deviations.mean()),
    }
