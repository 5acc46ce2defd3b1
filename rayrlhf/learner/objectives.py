"""What distinguishes one supervised stage from another: its rows, its loss and its figures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from rayrlhf.algorithms.preference_loss import (
    UNRANKED,
    LossSettings,
    PreferenceTargets,
    ordered_share,
    pair_masks,
    preference_loss,
    usable_rows,
)
from rayrlhf.algorithms.supervised import token_nll
from rayrlhf.data.batching import collate
from rayrlhf.models.forward import policy_forward, sequence_scores
from rayrlhf.types import Example, MicroBatch, PreferenceExample

Figures = dict[str, tuple[Tensor | float, float]]
"""By metric name a sum and what it is to be divided by, both still to be added up over micro-batches and ranks."""


@runtime_checkable
class Objective(Protocol):
    """The loss of a supervised stage and what it counts."""

    prefix: str
    """Area of its training metrics."""
    figures: tuple[str, ...]
    """Names of its metrics."""

    def weight(self, rows: Sequence[Any]) -> float:
        """What the rows count in the denominator of the loss: trained tokens, or the weights of preferences."""

    def tokens(self, rows: Sequence[Any]) -> int:
        """Tokens the rows train on."""

    def loss(
        self, model: Any, rows: Sequence[Any], batch: MicroBatch, *, weight: float, dtype: torch.dtype
    ) -> tuple[Tensor, Figures]:
        """This micro-batch's share of the loss, and its part of the figures."""

    def collate(self, rows: Sequence[Any]) -> MicroBatch:
        """The rows as one micro-batch; for no rows, one that trains nothing."""


class NextToken:
    """Supervised fine-tuning."""

    prefix = "policy"
    figures: tuple[str, ...] = ("nll",)

    def __init__(self, *, train_on_prompt: bool) -> None:
        self._train_on_prompt = train_on_prompt

    def weight(self, rows: Sequence[Example]) -> float:
        return self.tokens(rows)

    def tokens(self, rows: Sequence[Example]) -> int:
        return sum(len(row.token_ids) - self._start(row) for row in rows)

    def loss(
        self, model: Any, rows: Sequence[Example], batch: MicroBatch, *, weight: float, dtype: torch.dtype
    ) -> tuple[Tensor, Figures]:
        outputs = policy_forward(model, batch, temperature=1.0, with_entropy=False, compute_dtype=dtype)
        loss = token_nll(outputs.logprobs, batch.loss_mask, token_count=weight)
        return loss, {"nll": (loss.detach() * weight, self.tokens(rows))}

    def collate(self, rows: Sequence[Example]) -> MicroBatch:
        if not rows:
            return _empty()
        return collate([r.token_ids for r in rows], [self._start(r) for r in rows], range(len(rows)))

    def _start(self, row: Example) -> int:
        return 1 if self._train_on_prompt else max(1, row.prompt_length)


class PreferenceObjective:
    """Reward-model training: all responses of a prompt in one micro-batch."""

    prefix = "reward"
    figures: tuple[str, ...] = ("loss", "accuracy", "margin")

    def __init__(self, settings: LossSettings) -> None:
        self._settings = settings

    def weight(self, rows: Sequence[PreferenceExample]) -> float:
        targets = targets_of(rows)
        return float((targets.weight * usable_rows(targets, self._settings)).sum())

    def tokens(self, rows: Sequence[PreferenceExample]) -> int:
        return sum(len(sequence) for row in rows for sequence in row.sequences)

    def loss(
        self, model: Any, rows: Sequence[PreferenceExample], batch: MicroBatch, *, weight: float, dtype: torch.dtype
    ) -> tuple[Tensor, Figures]:
        flat = sequence_scores(model, batch, compute_dtype=dtype)
        if not rows:
            return 0.0 * flat.sum(), {}
        targets = targets_of(rows, device=flat.device)
        heads = flat.unsqueeze(-1) if flat.ndim == 1 else flat
        scores = [_in_rows(heads[:, h], targets.valid) for h in range(heads.shape[-1])]
        losses = [
            preference_loss(own, _seen_by(head, targets, rows), self._settings, row_weight=weight)
            for head, own in enumerate(scores)
        ]
        loss = torch.stack(losses).mean()
        return loss, self._figures(torch.stack(scores).detach().mean(0), targets)

    def collate(self, rows: Sequence[PreferenceExample]) -> MicroBatch:
        if not rows:
            return _empty()
        sequences = [sequence for row in rows for sequence in row.sequences]
        return collate(sequences, [1] * len(sequences), range(len(sequences)))

    def _figures(self, scores: Tensor, targets: PreferenceTargets) -> Figures:
        """The loss without its regularisers, the share of pairs in order and their mean difference."""
        plain = _without_regularisers(self._settings)
        count = float((targets.weight * usable_rows(targets, plain)).sum())
        figures: Figures = {"loss": (preference_loss(scores, targets, plain, row_weight=1.0), count)}
        better, _ = pair_masks(targets.rank)
        ordered = better.flatten(1).any(1)
        if ordered.any():
            difference = scores.unsqueeze(2) - scores.unsqueeze(1)
            margins = (difference * better).flatten(1).sum(1) / better.flatten(1).sum(1).clamp_min(1)
            figures["accuracy"] = (ordered_share(scores, targets.rank)[ordered].sum(), float(ordered.sum()))
            figures["margin"] = (margins[ordered].sum(), float(ordered.sum()))
        elif self._settings.kind == "binary":
            known = ~targets.label.isnan()
            right = (scores > self._settings.origin) == (targets.label > 0.5)
            figures["accuracy"] = (right[known].sum(), float(known.sum()))
        return figures


def targets_of(rows: Sequence[PreferenceExample], *, device: torch.device | None = None) -> PreferenceTargets:
    """What is known of the rows, padded to the largest K among them."""
    width = max(len(row.sequences) for row in rows)

    def padded(name: str, fill: float) -> np.ndarray:
        return np.array([[*getattr(row, name), *[fill] * (width - len(row.sequences))] for row in rows])

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=torch.float32, device=device)

    counts = np.array([len(row.sequences) for row in rows])
    return PreferenceTargets(
        valid=torch.from_numpy(np.arange(width) < counts[:, None]).to(device),
        rank=torch.from_numpy(padded("ranks", UNRANKED).astype(np.int64)).to(device),
        rating=torch.from_numpy(padded("ratings", np.nan).astype(np.float32)).to(device),
        label=torch.from_numpy(padded("labels", np.nan).astype(np.float32)).to(device),
        probability=column("probability"),
        margin=column("margin"),
        weight=column("weight"),
        pair_weight=_pair_weights(rows, width).to(device),
    )


def _pair_weights(rows: Sequence[PreferenceExample], width: int) -> Tensor:
    weights = torch.ones(len(rows), width, width)
    for own, row in zip(weights, rows, strict=True):
        if row.pair_weights is not None:
            count = len(row.sequences)
            own[:count, :count] = torch.from_numpy(row.pair_weights)
    return weights


def _in_rows(flat: Tensor, valid: Tensor) -> Tensor:
    """Scores [sequences] as [rows, K]."""
    return torch.zeros(valid.shape, device=flat.device).masked_scatter(valid, flat)


def _seen_by(head: int, targets: PreferenceTargets, rows: Sequence[PreferenceExample]) -> PreferenceTargets:
    """The targets with the weights one head gives the rows: in the mean over rows about 1, as without bootstrap."""
    if not rows[0].head_weights:
        return targets
    own = torch.tensor([row.head_weights[head] for row in rows], device=targets.weight.device)
    return replace(targets, weight=targets.weight * own)


def _without_regularisers(settings: LossSettings) -> LossSettings:
    return replace(settings, center_coef=0.0, l2_coef=0.0)


def _empty() -> MicroBatch:
    """A micro-batch that trains nothing: its one token has no predecessor."""
    return collate([np.zeros(1, dtype=np.int32)], [1], [0])
