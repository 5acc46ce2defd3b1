"""The PPO learner: policy and critic, and the update that makes version v + 1 of them from one batch of experience."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.kl import KLCoefficient
from rayrlhf.algorithms.masking import sequence_weights
from rayrlhf.algorithms.policy_loss import entropy_bonus, kl_loss, policy_loss
from rayrlhf.algorithms.rewards import RunningMoments
from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.algorithms.value_loss import value_loss
from rayrlhf.config import RunConfig
from rayrlhf.data.batching import plan_micro_batches
from rayrlhf.errors import LedgerError
from rayrlhf.learner.core import TrainableModel, share_of
from rayrlhf.learner.ppo_batch import (
    Estimates,
    PPOBatch,
    Targets,
    batch_figures,
    make_batch,
    make_targets,
    pass_figures,
    rows_or_nothing,
    sequences_of,
)
from rayrlhf.learner.process_group import Ranks, all_reduce_max, all_reduce_sum, gather_objects
from rayrlhf.learner.state import fingerprint, load_state, save_state
from rayrlhf.models.checkpoint_names import CheckpointNames
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.export import export_model
from rayrlhf.models.forward import policy_forward, token_values, values_with_end
from rayrlhf.models.sharding import full_model_state
from rayrlhf.types import MicroBatch, PolicyVersion, ScoredTrajectory, Trajectory, WeightManifest
from rayrlhf.weights.codec import pack_buckets
from rayrlhf.weights.manifest import plan_buckets


class PPOLearner:
    """One rank of the learner. `version` counts the updates its policy has behind it."""

    def __init__(
        self, config: RunConfig, *, policy: Any, critic: Any, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
    ) -> None:
        self._config = config.ppo
        self._seed = config.seed
        self._temperature = config.sampling.temperature
        self._tokenizer = tokenizer
        self._ranks = ranks
        self._device = resolve_device(config.device)
        self._dtype = resolve_dtype(config.learner.dtype, self._device)
        self._names = CheckpointNames(policy, dtype=resolve_dtype(config.rollout.dtype, self._device))
        self._buckets = plan_buckets(self._names.tensors, bucket_bytes=int(config.learner.bucket_mib * 2**20))
        self._fingerprint = fingerprint(policy, critic)
        steps = config.ppo.epochs * config.ppo.minibatches
        trainable = partial(
            TrainableModel, ranks=ranks, device=self._device, max_nonfinite_steps=config.learner.max_nonfinite_steps
        )
        self._critic_warmup = config.ppo.critic_warmup_updates if critic is not None else 0
        policy_updates = config.ppo.updates - self._critic_warmup
        self._policy = trainable(policy, config.ppo.optim, total_steps=policy_updates * steps)
        self._critic = (
            trainable(critic, config.ppo.critic_optim, total_steps=config.ppo.updates * steps)
            if critic is not None
            else None
        )
        self._kl = KLCoefficient(config.ppo.kl.coef, adaptive=config.ppo.kl.controller == "adaptive")
        self._moments = RunningMoments()
        self.version: PolicyVersion = 0
        self.tokens = 0
        self.progress = 0
        """Micro-batches begun since the process started."""

    # -- the update -------------------------------------------------------------------------------------------------

    def update(self, step: int, scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
        """Prepare, estimate, optimise, report: makes version `step + 1`; LedgerError for any step but the next."""
        if step != self.version:
            raise LedgerError(
                f"Update {step} cannot follow version {self.version}: each step is trained once, in order."
            )
        config = self._config
        # The order in which samples come says how they were spread over workers: it must not deal the minibatches.
        scored = sorted(scored, key=lambda item: item.trajectory.sample_id)
        batch = make_batch(scored, mask_truncated=config.truncation == "mask")
        estimates = self._estimate(batch)
        metrics = batch_figures(batch, estimates, scored, version=self.version)
        metrics |= pass_figures(scored, k=config.samples_per_prompt)
        seen = batch.scored_rows(config.truncation)
        if config.normalize_reward and seen.any():
            self._moments = self._moments.update(batch.scores[seen].numpy())
        targets, figures = make_targets(
            batch,
            estimates,
            config,
            kl_coef=self._kl.value,
            moments=self._moments if config.normalize_reward else None,
            version=self.version,
        )
        metrics |= figures | {"kl/coef": self._kl.value}
        metrics |= self._optimise(batch, estimates, targets, step=step)
        # Absent where the batch is too old to tell: then that of the policies that drew it, a few updates back.
        kl = metrics.get("kl/reference", metrics["kl/behaviour"])
        self._kl.adapt(kl=kl, target=config.kl.target, horizon=config.kl.horizon, samples=len(scored))
        self.version += 1
        self.tokens += int(batch.loss_mask.sum())
        return metrics

    @torch.no_grad()
    def _estimate(self, batch: PPOBatch) -> Estimates:
        shape = batch.loss_mask.shape
        # Arrays rather than tensors: a pickled row of a tensor takes its whole micro-batch along.
        rows: dict[int, tuple[np.ndarray, np.ndarray, float, float]] = {}
        for indices, micro in self._micro_batches(batch, range(len(batch.sequences))):
            outputs = policy_forward(
                self._policy.model,
                micro,
                temperature=self._temperature,
                with_entropy=True,
                compute_dtype=self._dtype,
            )
            assert outputs.entropy is not None
            logprobs, entropy = outputs.logprobs.cpu().numpy(), outputs.entropy.sum(dim=1).tolist()
            values, ends = self._values(micro)
            for row, i in enumerate(indices):
                rows[i] = (logprobs[row], values[row], ends[row], entropy[row])
        for other in gather_objects(rows, self._ranks):
            rows |= other
        old_logprobs, all_values = torch.zeros(shape), torch.zeros(shape)
        end_values = torch.zeros(shape[0])
        for i, (logprobs, values, end, _) in rows.items():
            old_logprobs[i, : len(logprobs)] = torch.from_numpy(logprobs)
            all_values[i, : len(values)] = torch.from_numpy(values)
            end_values[i] = end
        tokens = int(batch.response_mask.sum())
        return Estimates(
            old_logprobs=old_logprobs,
            entropy=sum(entropy for *_, entropy in rows.values()) / tokens,
            values=all_values,
            end_values=end_values,
        )

    def _optimise(self, batch: PPOBatch, estimates: Estimates, targets: Targets, *, step: int) -> dict[str, float]:
        config = self._config
        history: list[dict[str, float]] = []
        epochs = 0
        for epoch in range(config.epochs):
            order = np.random.default_rng(derive_seed(self._seed, "minibatches", step, epoch))
            shuffled = order.permutation(batch.trained_rows.numpy())
            for rows in np.array_split(shuffled, config.minibatches):
                if rows.size:
                    history.append(self._minibatch(batch, estimates, targets, rows.tolist(), step=step))
                if self._moved_too_far(history):
                    return _mean_of(history) | {"policy/epochs": epochs + 1.0}
            epochs += 1
        return _mean_of(history) | {"policy/epochs": float(epochs)}

    def _minibatch(
        self, batch: PPOBatch, estimates: Estimates, targets: Targets, rows: list[int], *, step: int
    ) -> dict[str, float]:
        """One optimizer update of each model; every loss is a share of one over the whole minibatch's tokens and rows."""
        counts = (int(batch.loss_mask[rows].sum()), len(rows))
        learn_policy = step >= self._critic_warmup
        sums = torch.zeros(5, dtype=torch.float64)
        ratio_error = 0.0
        for indices, micro in self._micro_batches(batch, rows):
            if learn_policy:
                loss, figures, error = self._policy_share(batch, targets, indices, micro, counts)
                self._policy.backward(loss)
                sums[:3] += figures
                ratio_error = max(ratio_error, error)
            if self._critic is not None:
                sums[3:] += self._critic_share(estimates, targets, indices, micro, counts)
        total = all_reduce_sum([float(x) for x in sums], self._ranks)
        metrics: dict[str, float] = {}
        if learn_policy:
            result = self._policy.step()
            names = ("policy/loss", "policy/clip_fraction", "policy/approx_kl")
            metrics |= dict(zip(names, total[:3], strict=True))
            metrics["policy/ratio_max_error"] = all_reduce_max(ratio_error, self._ranks)
            metrics |= {
                "optim/lr": result.lr,
                "optim/grad_norm": result.grad_norm,
                "optim/skipped": float(result.skipped),
            }
        if self._critic is not None:
            result = self._critic.step()
            metrics |= {"critic/loss": total[3], "critic/clip_fraction": total[4]}
            metrics |= {"optim/critic_lr": result.lr, "optim/critic_grad_norm": result.grad_norm}
            metrics["optim/skipped"] = metrics.get("optim/skipped", 0.0) + float(result.skipped)
        return metrics

    def _policy_share(
        self, batch: PPOBatch, targets: Targets, indices: list[int], micro: MicroBatch, counts: tuple[int, int]
    ) -> tuple[Tensor, Tensor, float]:
        config = self._config
        weights = self._loss_weights(micro, counts)
        outputs = policy_forward(
            self._policy.model,
            micro,
            temperature=self._temperature,
            with_entropy=config.entropy_coef > 0,
            compute_dtype=self._dtype,
        )
        parts = policy_loss(
            outputs.logprobs,
            _like(micro, targets.denominator, indices),
            _like(micro, targets.advantages, indices),
            micro.loss_mask,
            token_count=counts[0],
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            importance=None if targets.importance is None else _like(micro, targets.importance, indices),
            weights=weights,
            stale_ratio=None if targets.stale_ratio is None else _like(micro, targets.stale_ratio, indices),
        )
        loss = parts.loss
        if outputs.entropy is not None:
            loss = loss - config.entropy_coef * entropy_bonus(
                outputs.entropy, micro.loss_mask, token_count=counts[0], weights=weights
            )
        if config.kl.placement == "loss" and self._kl.value > 0:
            reference = _like(micro, batch.ref_logprobs, indices)
            loss = loss + self._kl.value * kl_loss(
                outputs.logprobs,
                reference,
                micro.loss_mask,
                kind=config.kl.estimator,
                token_count=counts[0],
                weights=weights,
            )
        figures = torch.stack([parts.loss.detach(), parts.clip_fraction, parts.approx_kl]).double().cpu()
        return loss, figures, float(parts.ratio_max_error)

    def _critic_share(
        self, estimates: Estimates, targets: Targets, indices: list[int], micro: MicroBatch, counts: tuple[int, int]
    ) -> Tensor:
        assert self._critic is not None
        parts = value_loss(
            token_values(self._critic.model, micro, compute_dtype=self._dtype),
            _like(micro, estimates.values, indices),
            _like(micro, targets.returns, indices),
            micro.loss_mask,
            token_count=counts[0],
            clip=self._config.value_clip,
            weights=self._loss_weights(micro, counts),
        )
        self._critic.backward(parts.loss)
        return torch.stack([parts.loss.detach(), parts.clip_fraction]).double().cpu()

    def _loss_weights(self, micro: MicroBatch, counts: tuple[int, int]) -> Tensor | None:
        """What each token's loss weighs beside 1 / tokens; `counts` are the minibatch's tokens and responses."""
        if self._config.loss_aggregation == "token":
            return None
        return sequence_weights(micro.loss_mask, token_count=counts[0], row_count=counts[1])

    def _moved_too_far(self, history: list[dict[str, float]]) -> bool:
        limit = self._config.target_kl
        return bool(limit is not None and history and history[-1].get("policy/approx_kl", 0.0) > limit)

    def _values(self, micro: MicroBatch) -> tuple[np.ndarray, list[float]]:
        if self._critic is None:
            return np.zeros(micro.input_ids.shape, dtype=np.float32), [0.0] * len(micro.indices)
        values, ends = values_with_end(self._critic.model, micro, compute_dtype=self._dtype)
        return torch.where(micro.loss_mask, values, 0.0).cpu().numpy(), ends.tolist()

    def _micro_batches(self, batch: PPOBatch, rows: Sequence[int]) -> Iterator[tuple[list[int], MicroBatch]]:
        """This rank's micro-batches of `rows`, with the rows of the batch that each holds."""
        plan = plan_micro_batches(
            [len(batch.sequences[i]) for i in rows],
            max_tokens=self._config.micro_batch_tokens,
            multiple_of=self._ranks.world,
        )
        for part in share_of(plan, self._ranks):
            self.progress += 1
            indices = [rows[i] for i in part]
            yield indices, rows_or_nothing(batch.sequences, batch.starts, indices).to(self._device)

    # -- around it --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logprobs_of(self, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
        """The learner's log-probs [R] of each response, at the sampling temperature."""
        sequences, starts = sequences_of(trajectories)
        plan = plan_micro_batches(
            [len(s) for s in sequences], max_tokens=self._config.micro_batch_tokens, multiple_of=self._ranks.world
        )
        rows: dict[int, np.ndarray] = {}
        for indices in share_of(plan, self._ranks):
            micro = rows_or_nothing(sequences, starts, indices).to(self._device)
            logprobs = policy_forward(
                self._policy.model,
                micro,
                temperature=self._temperature,
                with_entropy=False,
                compute_dtype=self._dtype,
            ).logprobs
            for row, i in enumerate(indices):
                rows[i] = logprobs[row][micro.loss_mask[row]].cpu().numpy()
        for other in gather_objects(rows, self._ranks):
            rows |= other
        return [rows[i] for i in range(len(trajectories))]

    @property
    def bucket_count(self) -> int:
        """Buckets of a published version."""
        return len(self._buckets.bucket_bytes)

    def publish(self) -> tuple[WeightManifest, list[np.ndarray]] | None:
        """The current policy under its checkpoint's names, in the engine's precision, on rank 0; a collective."""
        tensors = self._names.published(self._policy.model)
        if self._ranks.first:
            return pack_buckets(self._buckets, tensors, version=self.version)
        for _ in tensors:
            pass
        return None

    def save(self, directory: str) -> None:
        """Write all the learner owns: both models and optimizers, schedules, factors of the KL coefficient, moments, version."""
        critic = self._critic.state_dict() if self._critic is not None else None
        state = {
            "fingerprint": self._fingerprint,
            "policy": self._policy.state_dict(),
            "critic": critic,
            "kl_coefficient": self._kl.state_dict(),
            "moments": asdict(self._moments),
            "version": self.version,
            "tokens": self.tokens,
        }
        save_state(Path(directory), state, self._ranks)

    def load(self, directory: str) -> None:
        """Go on from `save`; CheckpointError if it was of other models."""
        state = load_state(Path(directory), models=self._fingerprint)
        self._policy.load_state_dict(state["policy"])
        if self._critic is not None:
            self._critic.load_state_dict(state["critic"])
        self._kl.load_state_dict(state["kl_coefficient"])
        self._moments = RunningMoments(**state["moments"])
        self.version = state["version"]
        self.tokens = state["tokens"]

    def forget_scores(self) -> None:
        """Let the moments that scores are normalised by start anew: other reward models give other scores."""
        self._moments = RunningMoments()

    def scale_kl(self, factor: float) -> None:
        """Multiply the KL coefficient, from the next update on."""
        self._kl.scale(factor)

    def export(self, policy_dir: str, critic_dir: str) -> None:
        """Write plain model directories; a collective."""
        models = [(self._policy, policy_dir), *([(self._critic, critic_dir)] if self._critic is not None else [])]
        for trainable, directory in models:
            state = full_model_state(trainable.model)
            if self._ranks.first:
                export_model(trainable.model, self._tokenizer, directory, state_dict=state)


def _like(micro: MicroBatch, values: Tensor, indices: list[int]) -> Tensor:
    """The rows of a whole-batch tensor [batch, time] that belong to a micro-batch, cut to its width."""
    if not indices:
        return torch.zeros(micro.input_ids.shape, device=micro.input_ids.device)
    return values[indices, : micro.input_ids.shape[1]].to(micro.input_ids.device)


def _mean_of(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over the minibatches; the largest ratio error of the first alone, the last learning rates.

    What was not finite, as the gradient norm of a skipped step, is left out: `optim/skipped` counts it.
    """
    if not history:
        return {}
    names = {name for row in history for name in row}
    finite = {name: [row[name] for row in history if math.isfinite(row.get(name, math.nan))] for name in names}
    means = {name: float(np.mean(values)) for name, values in finite.items() if values}
    for name in ("optim/lr", "optim/critic_lr"):
        if name in history[-1]:
            means[name] = history[-1][name]
    if "policy/ratio_max_error" in history[0]:
        means["policy/ratio_max_error"] = history[0]["policy/ratio_max_error"]
    means["optim/skipped"] = sum(row["optim/skipped"] for row in history)
    return means
