"""Advantage estimators."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GroupBaseline = Literal["rloo", "grpo", "reinforce"]


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    gamma: float,
    lam: float,
    bootstrap: Float[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Advantages and returns by generalised advantage estimation (Schulman et al. 2016, equations 11 to 16).

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * lam * A_{t+1}, over each row's run of valid tokens;
    returns are A + V. V past the last token is 0, or `bootstrap` for a row whose response was cut.
    """
    rewards = torch.where(loss_mask, rewards, 0.0)
    values = torch.where(loss_mask, values, 0.0)
    end = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values.dtype)
    advantages = torch.zeros_like(values)
    advantage, next_value = torch.zeros_like(end), end
    for t in range(values.shape[1] - 1, -1, -1):
        valid = loss_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(valid, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        advantages[:, t] = torch.where(valid, advantage, 0.0)
    return advantages, torch.where(loss_mask, advantages + values, 0.0)


def group_advantages(
    rewards: Float[Tensor, " batch"], groups: Int[Tensor, " batch"], *, kind: GroupBaseline
) -> Float[Tensor, " batch"]:
    """One advantage a response, against the other responses to its prompt (`groups` names the prompt).

    rloo: r_i - mean of the others, which is n / (n - 1) * (r_i - mean) (Ahmadian et al. 2024); grpo: (r_i - mean) /
    (std + 1e-6) (Shao et al. 2024, equation 3, with the sample standard deviation); reinforce: r_i - mean of the batch.
    """
    if kind == "reinforce":
        return rewards - rewards.mean()
    _, group = groups.unique(return_inverse=True)
    size = torch.bincount(group).to(rewards.dtype)[group]
    mean = _group_sum(rewards, group) / size
    centred = rewards - mean
    if kind == "rloo":
        return centred * size / (size - 1).clamp(min=1)
    variance = _group_sum(centred.square(), group) / (size - 1).clamp(min=1)
    return centred / (variance.sqrt() + 1e-6)


def _group_sum(x: Tensor, group: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, group, x)[group]
