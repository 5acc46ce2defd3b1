"""The supervised stages: one loop over batches, and two objectives (next-token loss, Bradley-Terry)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.algorithms.supervised import bradley_terry, centering, token_nll
from rayrlhf.config import RunConfig, SupervisedConfig
from rayrlhf.data.batching import collate, plan_micro_batches
from rayrlhf.data.dataset import (
    load_demonstrations,
    load_preferences,
    tokenize_demonstrations,
    tokenize_preferences,
)
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import DataError
from rayrlhf.learner.core import TrainableModel, share_of
from rayrlhf.learner.process_group import Ranks, all_reduce_sum
from rayrlhf.learner.state import fingerprint, load_state, save_state
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.export import export_model
from rayrlhf.models.forward import policy_forward, sequence_scores
from rayrlhf.models.load import load_policy, make_reward_model
from rayrlhf.models.sharding import full_model_state
from rayrlhf.types import Example, MicroBatch, PreferencePair


@runtime_checkable
class Objective(Protocol):
    """What distinguishes one supervised stage from another."""

    group: int
    """Sequences of one row."""
    prefix: str
    """Area of its training metrics."""

    def length(self, row: Any) -> int:
        """Tokens of the row's longest sequence."""

    def weight(self, rows: Sequence[Any]) -> int:
        """What the rows count in the denominator of the loss: trained tokens or pairs."""

    def tokens(self, rows: Sequence[Any]) -> int:
        """Tokens the rows train on."""

    def loss(
        self, model: Any, batch: MicroBatch, *, weight: int, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the loss, and of its figures by metric name."""

    def collate(self, rows: Sequence[Any]) -> MicroBatch:
        """The rows as one micro-batch; for no rows, one that trains nothing."""


class NextToken:
    """Supervised fine-tuning."""

    group = 1
    prefix = "policy"

    def __init__(self, *, train_on_prompt: bool) -> None:
        self._train_on_prompt = train_on_prompt

    def length(self, row: Example) -> int:
        return len(row.token_ids)

    def weight(self, rows: Sequence[Example]) -> int:
        return sum(len(row.token_ids) - self._start(row) for row in rows)

    def tokens(self, rows: Sequence[Example]) -> int:
        return self.weight(rows)

    def loss(
        self, model: Any, batch: MicroBatch, *, weight: int, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = policy_forward(model, batch, temperature=1.0, with_entropy=False, compute_dtype=dtype)
        loss = token_nll(outputs.logprobs, batch.loss_mask, token_count=weight)
        return loss, {"nll": loss.detach()}

    def collate(self, rows: Sequence[Example]) -> MicroBatch:
        if not rows:
            return _empty(1)
        return collate([r.token_ids for r in rows], [self._start(r) for r in rows], range(len(rows)))

    def _start(self, row: Example) -> int:
        return 1 if self._train_on_prompt else max(1, row.prompt_length)


class PairwisePreference:
    """Reward-model training: both responses of a pair in one micro-batch, the chosen ones first."""

    group = 2
    prefix = "reward"

    def __init__(self, *, center_coef: float) -> None:
        self._center_coef = center_coef

    def length(self, row: PreferencePair) -> int:
        return max(len(row.chosen_ids), len(row.rejected_ids))

    def weight(self, rows: Sequence[PreferencePair]) -> int:
        return len(rows)

    def tokens(self, rows: Sequence[PreferencePair]) -> int:
        return sum(len(row.chosen_ids) + len(row.rejected_ids) for row in rows)

    def loss(
        self, model: Any, batch: MicroBatch, *, weight: int, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = sequence_scores(model, batch, compute_dtype=dtype)
        if not batch.loss_mask.any():
            return 0.0 * scores.sum(), {}
        chosen, rejected = scores.chunk(2)
        loss = bradley_terry(chosen, rejected, pair_count=weight)
        margin = (chosen - rejected).detach()
        shares = {
            "loss": loss.detach(),
            "accuracy": ((margin > 0).float() + 0.5 * (margin == 0).float()).sum() / weight,
            "margin": margin.sum() / weight,
        }
        if self._center_coef:
            loss = loss + self._center_coef * centering(chosen, rejected, pair_count=weight)
        return loss, shares

    def collate(self, rows: Sequence[PreferencePair]) -> MicroBatch:
        if not rows:
            return _empty(2)
        sequences = [row.chosen_ids for row in rows] + [row.rejected_ids for row in rows]
        return collate(sequences, [1] * len(sequences), range(len(sequences)))


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
        train: Sequence[Any],
        heldout: Sequence[Any],
        ranks: Ranks,
    ) -> None:
        if not train or not heldout:
            raise DataError(f"There are {len(train)} rows to train on and {len(heldout)} held out; both are needed.")
        self._settings = settings
        self._objective = objective
        self._seed = config.seed
        self._tokenizer = tokenizer
        self._train = train
        self._heldout = heldout
        self._ranks = ranks
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
        rows = self._batch(step)
        weight = self._objective.weight(rows)
        shares: list[dict[str, Tensor]] = []
        for batch in self._micro_batches(rows):
            loss, figures = self._objective.loss(self._core.model, batch, weight=weight, dtype=self._dtype)
            self._core.backward(loss)
            shares.append(figures)
        result = self._core.step()
        self.tokens += self._objective.tokens(rows)
        metrics = {f"{self._objective.prefix}/{name}": value for name, value in self._total(shares).items()}
        return metrics | {
            "optim/lr": result.lr,
            "optim/grad_norm": result.grad_norm,
            "optim/skipped": float(result.skipped),
            "optim/epoch": (step + 1) / self._steps_per_epoch,
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss (and accuracy) over every held-out row."""
        weight = self._objective.weight(self._heldout)
        shares = [
            self._objective.loss(self._core.model, batch, weight=weight, dtype=self._dtype)[1]
            for batch in self._micro_batches(self._heldout)
        ]
        return {f"eval/{name}": value for name, value in self._total(shares).items() if name != "margin"}

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
            export_model(self._core.model, self._tokenizer, directory, state_dict=state)

    def _batch(self, step: int) -> list[Any]:
        """The rows of a step: a pure function of the seed and the step."""
        epoch, position = divmod(step, self._steps_per_epoch)
        order = np.random.default_rng(derive_seed(self._seed, "epoch", epoch)).permutation(len(self._train))
        size = self._settings.prompts_per_step
        return [self._train[i] for i in order[position * size : (position + 1) * size]]

    def _micro_batches(self, rows: Sequence[Any]) -> Iterator[MicroBatch]:
        plan = plan_micro_batches(
            [self._objective.length(row) for row in rows],
            max_tokens=self._settings.micro_batch_tokens,
            multiple_of=self._ranks.world,
            group=self._objective.group,
        )
        for indices in share_of(plan, self._ranks):
            yield self._objective.collate([rows[i] for i in indices]).to(self._core.device)

    def _total(self, shares: list[dict[str, Tensor]]) -> dict[str, float]:
        names = ("nll",) if self._objective.prefix == "policy" else ("loss", "accuracy", "margin")
        mine = [sum(float(share[name]) for share in shares if name in share) for name in names]
        return dict(zip(names, all_reduce_sum(mine, self._ranks), strict=True))


def build_supervised(
    config: RunConfig, stage: Literal["sft", "reward"], *, base_dir: str, ranks: Ranks
) -> SupervisedLearner:
    """The learner of one supervised stage, its model and data loaded."""
    tokenizer = load_tokenizer(base_dir)
    objective: Objective
    train: Sequence[Any]
    heldout: Sequence[Any]
    if stage == "sft":
        settings: SupervisedConfig = config.sft
        demonstrations = load_demonstrations(config)
        train, heldout = (
            tokenize_demonstrations(rows, tokenizer, config) for rows in (demonstrations.train, demonstrations.heldout)
        )
        objective = NextToken(train_on_prompt=config.sft.train_on_prompt)
        model = load_policy(base_dir)
    else:
        settings = config.reward
        preferences = load_preferences(config)
        train, heldout = (
            tokenize_preferences(rows, tokenizer, config) for rows in (preferences.train, preferences.heldout)
        )
        objective = PairwisePreference(center_coef=config.reward.center_coef)
        model = make_reward_model(base_dir, tokenizer, seed=derive_seed(config.seed, "reward head"))
    return SupervisedLearner(
        config, settings, objective, model=model, tokenizer=tokenizer, train=train, heldout=heldout, ranks=ranks
    )


def _empty(rows: int) -> MicroBatch:
    """A micro-batch that trains nothing: its one token has no predecessor."""
    return collate([np.zeros(1, dtype=np.int32)] * rows, [1] * rows, range(rows))
