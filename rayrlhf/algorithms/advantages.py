"""Advantage estimators."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GroupBaseline = Literal["rloo", "grpo", "reinforce"]
Scale = Literal["std", "none"]
_ROUNDING = 1e-5
"""Of the largest score of a group: what a scorer in float32 may differ by between two passes over the same text."""


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
    returns are A + V. V past the last token is 0, or `bootstrap` for a row whose response was cut; such a row's rewards
    must not hold its score too, or each update would add the score to the value that the next one starts from.
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
    scores: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
    *,
    kind: GroupBaseline,
    scale: Scale = "std",
    penalties: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """One advantage a response, against the other responses to its prompt (`groups` names the prompt).

    rloo: r_i - mean of the others, which is n / (n - 1) * (r_i - mean) (Ahmadian et al. 2024); grpo: (r_i - mean) /
    (std + 1e-6) (Shao et al. 2024, equation 3, with the sample standard deviation), or r_i - mean where `scale` is none
    (Dr. GRPO, Liu et al. 2025, equation 3); reinforce: r_i - mean of the batch.

    `penalties`, as the KL of a response times its coefficient, are subtracted from the scores. In grpo they are centred
    as the scores are, but not divided by the deviation, which is that of the scores alone: in the paper the KL is a term
    beside the normalised scores, and where all scores are equal a division would blow its noise up to full size and
    take the coefficient out of it. Scores of a group that differ by rounding alone count as equal.
    """
    advantages = _centred(scores.double(), groups, kind)
    if kind == "grpo" and scale == "std":
        advantages = _over_deviation(advantages, scores.double(), groups)
    if penalties is not None:
        advantages = advantages - _centred(penalties.double(), groups, kind)
    return advantages.to(scores.dtype)


def certainty_weights(spreads: Float[Tensor, " batch"], *, weight: float) -> Float[Tensor, " batch"]:
    """1 / (1 + weight x spread^2): what is left of a sample's part in the policy's objective; 1 where the spread is NaN.

    `spreads` are standard deviations over the members of an ensemble, which are standardised. Up to its constant this is
    the inverse-variance weight 1 / (variance + xi) of Mai et al. 2022 (section 4), xi = 1 / weight, scaled to be 1 where
    all members agree and not to sum to 1 over the batch: of a batch that is doubtful as a whole less is learned. At
    weight 1 it is the share of a score's variance that is signal, for a signal of variance 1 and noise of spread^2.
    """
    return torch.where(spreads.isnan(), 1.0, 1.0 / (1.0 + weight * spreads.square()))


def equal_scores(scores: Float[Tensor, " batch"], groups: Int[Tensor, " batch"]) -> Bool[Tensor, " groups"]:
    """For each group, in ascending order of its number, whether its scores are equal but for rounding in float32."""
    count, group = _numbered(groups)
    scores = scores.double()

    def each(reduce: str, values: Tensor) -> Tensor:
        return values.new_zeros(count).scatter_reduce(0, group, values, reduce, include_self=False)

    spread = each("amax", scores) - each("amin", scores)
    return spread <= _ROUNDING * each("amax", scores.abs())


def _centred(values: Tensor, groups: Tensor, kind: GroupBaseline) -> Tensor:
    if kind == "reinforce":
        return values - values.mean()
    count, group = _numbered(groups)
    size = torch.bincount(group, minlength=count).to(values.dtype)[group]
    centred = values - _group_sum(values, group) / size
    return centred * size / (size - 1).clamp(min=1) if kind == "rloo" else centred


def _over_deviation(centred: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    count, group = _numbered(groups)
    size = torch.bincount(group, minlength=count).to(centred.dtype)[group]
    variance = _group_sum(centred.square(), group) / (size - 1).clamp(min=1)
    return torch.where(equal_scores(scores, groups)[group], 0.0, centred / (variance.sqrt() + 1e-6))


def _numbered(groups: Tensor) -> tuple[int, Tensor]:
    """How many groups there are, and each response's, counted from 0."""
    names, group = groups.unique(return_inverse=True)
    return len(names), group


def _group_sum(x: Tensor, group: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, group, x)[group]
