"""The supervised stages: one loop over batches, whatever their objective."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RunConfig, SupervisedConfig
from rayrlhf.data.batching import demand_fit, plan_micro_batches
from rayrlhf.data.rows import Rows
from rayrlhf.errors import DataError
from rayrlhf.learner.core import TrainableModel, share_of
from rayrlhf.learner.objectives import Figures, Objective
from rayrlhf.learner.process_group import Ranks, all_reduce_sum
from rayrlhf.learner.state import fingerprint, load_state, save_state
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.sharding import full_model_state
from rayrlhf.types import MicroBatch

_AT_ONCE = 1024
"""Rows that are in memory together while the weight of an evaluation's rows is added up."""


class SupervisedLearner:
    """One rank of a supervised stage."""

    def __init__(
        self,
        config: RunConfig,
        settings: SupervisedConfig,
        objective: Objective,
        *,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        train: Rows[Any],
        heldout: Rows[Any],
        ranks: Ranks,
        seed: int,
    ) -> None:
        if not train or not heldout:
            raise DataError(f"There are {len(train)} rows to train on and {len(heldout)} held out; both are needed.")
        self._settings = settings
        self._objective = objective
        self._seed = seed
        self._tokenizer = tokenizer
        self._train = train
        self._heldout = heldout
        self._judges = some_of(heldout, settings.evaluate_rows, seed=config.seed)
        self._ranks = ranks
        for rows in (train, heldout):
            # A row that does not fit is told now, not when its step comes.
            demand_fit(*_sizes(rows), max_tokens=settings.micro_batch_tokens)
        device = resolve_device(config.device)
        self._dtype = resolve_dtype(config.learner.dtype, device)
        self._steps_per_epoch = -(-len(train) // settings.prompts_per_step)
        self.total_steps = settings.epochs * self._steps_per_epoch
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.tokens = 0
        self._fingerprint = fingerprint(model)
        self._core = TrainableModel(
            model,
            settings.optim,
            total_steps=self.total_steps,
            ranks=ranks,
            device=device,
            max_nonfinite_steps=config.learner.max_nonfinite_steps,
        )

    def train_step(self) -> dict[str, float]:
        """One optimizer update on the next batch; its metrics."""
        step = self._core.steps
        rows = self._batch(step).loaded()
        weight = self._objective.weight(rows)
        parts: list[Figures] = []
        for some, batch in self._micro_batches(rows):
            loss, figures = self._objective.loss(self._core.model, some, batch, weight=weight, dtype=self._dtype)
            self._core.backward(loss)
            parts.append(figures)
        result = self._core.step()
        self.tokens += self._objective.tokens(rows)
        metrics = {f"{self._objective.prefix}/{name}": value for name, value in self._total(parts).items()}
        return metrics | {
            "optim/lr": result.lr,
            "optim/grad_norm": result.grad_norm,
            "optim/skipped": float(result.skipped),
            "optim/epoch": (step + 1) / self._steps_per_epoch,
        }

    @torch.no_grad()
    def evaluate(self, whole: bool = False) -> dict[str, float]:
        """Loss (and accuracy) over the held-out rows, at most `evaluate_rows` of them unless it is the `whole`."""
        rows = self._heldout if whole else self._judges
        weight = sum(self._objective.weight(rows[start : start + _AT_ONCE]) for start in range(0, len(rows), _AT_ONCE))
        parts = [
            self._objective.loss(self._core.model, some, batch, weight=weight, dtype=self._dtype)[1]
            for some, batch in self._micro_batches(rows)
        ]
        return {f"eval/{name}": value for name, value in self._total(parts).items() if name != "margin"}

    def save(self, directory: str) -> None:
        """Write everything a resumed run needs; a collective."""
        state = {"fingerprint": self._fingerprint, "core": self._core.state_dict(), "tokens": self.tokens}
        save_state(Path(directory), state, self._ranks)

    def load(self, directory: str) -> None:
        """Go on from `save`; CheckpointError if it was of another model."""
        state = load_state(Path(directory), models=self._fingerprint)
        self._core.load_state_dict(state["core"])
        self.tokens = state["tokens"]

    def export(self, directory: str) -> None:
        """Write a plain model directory; a collective."""
        state = full_model_state(self._core.model)
        if self._ranks.first:
            write = export_model if self._objective.prefix == "policy" else export_reward_model
            write(self._core.model, self._tokenizer, directory, state_dict=state)

    def _batch(self, step: int) -> Rows[Any]:
        """The rows of a step: a pure function of the seed and the step."""
        epoch, position = divmod(step, self._steps_per_epoch)
        size = self._settings.prompts_per_step
        return self._train.pick(self._order(epoch)[position * size : (position + 1) * size])

    @lru_cache(maxsize=1)  # noqa: B019 - as long as the learner lives
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self._seed, "epoch", epoch)).permutation(len(self._train))

    def _micro_batches(self, rows: Rows[Any]) -> Iterator[tuple[list[Any], MicroBatch]]:
        lengths, counts = _sizes(rows)
        plan = plan_micro_batches(
            lengths.tolist(),
            max_tokens=self._settings.micro_batch_tokens,
            multiple_of=self._ranks.world,
            counts=counts.tolist(),
        )
        for indices in share_of(plan, self._ranks):
            some = [rows[i] for i in indices]
            yield some, self._objective.collate(some).to(self._core.device)

    def _total(self, parts: list[Figures]) -> dict[str, float]:
        """Every figure over all micro-batches and ranks; one that nothing counted for is left out."""
        names = self._objective.figures
        sums = [sum(float(part[name][0]) for part in parts if name in part) for name in names]
        counts = [sum(part[name][1] for part in parts if name in part) for name in names]
        added = all_reduce_sum([*sums, *counts], self._ranks)
        pairs = zip(names, added[: len(names)], added[len(names) :], strict=True)
        return {name: value / count for name, value, count in pairs if count}


def some_of(rows: Rows[Any], most: int, *, seed: int) -> Rows[Any]:
    """At most so many of the rows, in their order, the same ones for one seed."""
    if len(rows) <= most:
        return rows
    return rows.pick(np.sort(np.random.default_rng(derive_seed(seed, "evaluation")).permutation(len(rows))[:most]))


def _sizes(rows: Rows[Any]) -> tuple[np.ndarray, np.ndarray]:
    """What a micro-batch is planned by: the tokens of each row's longest sequence, and its sequences."""
    return rows.column("longest"), rows.column("sequences_of")
