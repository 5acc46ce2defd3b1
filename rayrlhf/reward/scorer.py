"""The scorer of one process: frozen reward model and reference policy over trajectories."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from rayrlhf.algorithms.ensemble import Combination, combine, standardized
from rayrlhf.data.batching import collate, plan_micro_batches
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.forward import policy_forward
from rayrlhf.models.load import load_policy
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import load_stats
from rayrlhf.types import MicroBatch, ScoredTrajectory, Trajectory

Gold = Callable[[str, str], float]
"""A task's known true reward of (prompt, response)."""


class TrajectoryScorer:
    """Scores whole token sequences as the engine drew them: nothing is tokenized again."""

    def __init__(
        self,
        *,
        reward_model_dir: str,
        reference_dir: str,
        micro_batch_tokens: int,
        temperature: float,
        device: str,
        dtype: str,
        combination: Combination,
        penalty: float,
        gold: Gold | None,
    ) -> None:
        self._tokenizer = load_tokenizer(reference_dir)
        self._reward_model = RewardModel(
            reward_model_dir, device=device, dtype=dtype, micro_batch_tokens=micro_batch_tokens
        )
        if self._reward_model.tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise ModelError(
                f"The reward model {reward_model_dir} has another vocabulary than the policy {reference_dir}: it cannot "
                f"read the policy's tokens."
            )
        self._device = resolve_device("cuda" if device == "cuda" else "cpu")
        self._dtype = resolve_dtype(dtype, self._device)
        self._reference = load_policy(reference_dir, dtype=self._dtype).to(self._device)
        self._micro_batch_tokens = micro_batch_tokens
        self._temperature = temperature
        self._combination = combination
        self._penalty = penalty
        self._scales = load_stats(reward_model_dir).members if self._reward_model.members > 1 else []
        self._gold = gold

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
        """Score and reference log-probs of each trajectory, in order; ModelError for a number that is not finite."""
        sequences = [np.concatenate([t.prompt_ids, t.response_ids]) for t in trajectories]
        starts = [len(t.prompt_ids) for t in trajectories]
        scored: list[ScoredTrajectory | None] = [None] * len(trajectories)
        for indices in plan_micro_batches([len(s) for s in sequences], max_tokens=self._micro_batch_tokens):
            batch = collate(sequences, starts, indices).to(self._device)
            for i, score, spread, ref_logprobs in zip(indices, *self._forward(batch), strict=True):
                scored[i] = self._assemble(trajectories[i], score, spread, ref_logprobs)
        return [item for item in scored if item is not None]

    @torch.no_grad()
    def _forward(self, batch: MicroBatch) -> tuple[list[float], list[float | None], list[np.ndarray]]:
        """Score, spread and reference log-probs of each row."""
        scores, spreads = self._combined(self._reward_model.score_batch(batch).cpu().numpy())
        logprobs = policy_forward(
            self._reference, batch, temperature=self._temperature, with_entropy=False
        ).logprobs.cpu()
        mask = batch.loss_mask.cpu()
        return scores, spreads, [row[valid].numpy() for row, valid in zip(logprobs, mask, strict=True)]

    def _combined(self, raw: np.ndarray) -> tuple[list[float], list[float | None]]:
        """A single model's raw scores; of an ensemble its standardised members as one, and how far they disagree."""
        if not self._scales:
            return raw[:, 0].tolist(), [None] * len(raw)
        means, stds = (np.array([getattr(scale, name) for scale in self._scales]) for name in ("mean", "std"))
        score, spread = combine(standardized(raw, means, stds), self._combination, penalty=self._penalty)
        return score.tolist(), spread.tolist()

    def _assemble(
        self, trajectory: Trajectory, score: float, spread: float | None, ref_logprobs: np.ndarray
    ) -> ScoredTrajectory:
        if not math.isfinite(score):
            raise ModelError(f"The reward model gave sample {trajectory.sample_id} the score {score}.")
        if not np.isfinite(ref_logprobs).all():
            raise ModelError(f"The reference policy gave sample {trajectory.sample_id} log-probs that are not finite.")
        prompt, response = (
            self._tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (trajectory.prompt_ids, trajectory.response_ids)
        )
        return ScoredTrajectory(
            trajectory=trajectory,
            score=score,
            spread=spread,
            ref_logprobs=ref_logprobs,
            prompt_text=prompt,
            response_text=response,
            gold=None if self._gold is None else self._gold(prompt, response),
        )
