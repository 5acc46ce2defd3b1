"""The optimizer core every stage shares: fp32 masters, clipping, schedule, refusal of non-finite gradients, state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrlhf.algorithms.schedule import lr_multiplier
from rayrlhf.config import OptimConfig
from rayrlhf.errors import NonFiniteError
from rayrlhf.learner.process_group import Ranks, all_reduce_max
from rayrlhf.models.sharding import clip_gradients, full_state, load_full_state, shard


def share_of(plan: Sequence[list[int]], ranks: Ranks) -> list[list[int]]:
    """This rank's micro-batches of a plan, dealt in turn.

    Every rank gets the same number, the last ones maybe empty: a forward or backward pass over shards is a collective.
    """
    passes = -(-len(plan) // ranks.world)
    mine = list(plan[ranks.rank :: ranks.world])
    return mine + [[]] * (passes - len(mine))


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did."""

    grad_norm: float
    """Before clipping."""
    lr: float
    skipped: bool
    """The gradient was not finite on some rank, so no rank changed its parameters."""


class TrainableModel:
    """A model, sharded where there are several ranks, with the optimizer that trains it.

    What `backward` is given are shares of one loss over global counts: they add up over micro-batches and ranks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optim: OptimConfig,
        *,
        total_steps: int,
        ranks: Ranks,
        device: torch.device,
        max_nonfinite_steps: int,
    ) -> None:
        self.device = device
        self.model: Any = shard(model.to(device), world=ranks.world, device=device)
        self.steps = 0
        """Optimizer steps tried so far, skipped ones included: the position in the schedule."""
        self._optim = optim
        self._total_steps = total_steps
        self._ranks = ranks
        self._max_nonfinite_steps = max_nonfinite_steps
        self._nonfinite_in_a_row = 0
        self._optimizer = _adamw(self.model, optim)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's share of the loss."""
        loss.backward()

    def step(self) -> StepResult:
        """Clip and apply the gathered gradients.

        A gradient that is not finite on any rank is dropped on all of them; NonFiniteError after too many in a row.
        """
        lr = self._optim.lr * lr_multiplier(
            self.steps,
            total_steps=self._total_steps,
            warmup_steps=self._optim.warmup_steps,
            schedule=self._optim.schedule,
            min_ratio=self._optim.min_lr_ratio,
        )
        grad_norm = clip_gradients(self.model, self._optim.max_grad_norm)
        broken = all_reduce_max(0.0 if math.isfinite(grad_norm) else 1.0, self._ranks) > 0
        if broken:
            self._count_nonfinite(grad_norm)
        else:
            self._nonfinite_in_a_row = 0
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return StepResult(grad_norm=grad_norm, lr=lr, skipped=broken)

    def _count_nonfinite(self, grad_norm: float) -> None:
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row >= self._max_nonfinite_steps:
            raise NonFiniteError(
                f"The gradient of {type(self.model).__name__} was not finite (norm {grad_norm}) for "
                f"{self._nonfinite_in_a_row} optimizer steps in a row, the last of them step {self.steps}: lower the "
                f"learning rate ({self._optim.lr}) or look for extreme scores or log-probs in the last batches."
            )

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimizer and position, whole; a collective, filled on rank 0 alone."""
        return full_state(self.model, self._optimizer) | {
            "steps": self.steps,
            "nonfinite_in_a_row": self._nonfinite_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, with any number of ranks and this run's own settings of AdamW; a collective."""
        load_full_state(self.model, self._optimizer, state, world=self._ranks.world)
        _configure(self._optimizer, self._optim)
        self.steps = state["steps"]
        self._nonfinite_in_a_row = state["nonfinite_in_a_row"]


def _adamw(model: torch.nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [[p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group], lr=optim.lr, fused=True)
    _configure(optimizer, optim)
    return optimizer


def _configure(optimizer: torch.optim.AdamW, optim: OptimConfig) -> None:
    """What the configuration says, also where a loaded state remembers another one."""
    beta1, beta2 = optim.betas
    for group in optimizer.param_groups:
        # Norms and biases are kept out of the decay, which would pull scales to zero.
        decay = optim.weight_decay if group["params"][0].ndim >= 2 else 0.0
        group |= {"lr": optim.lr, "betas": (beta1, beta2), "eps": optim.eps, "weight_decay": decay}
