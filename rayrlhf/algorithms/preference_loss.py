"""What a reward model learns from: pure losses of scores [rows, K], one row a prompt with its K responses.

Every loss is a sum over rows / the global row weight, so that splitting a batch never changes a gradient. Within a row
the pairs, or the responses, are averaged: a prompt with more responses weighs no more than another. Scores are fp32.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

PreferenceLoss = Literal[
    "bradley_terry",
    "margin",
    "scaled",
    "robust",
    "hinge",
    "rao_kupper",
    "davidson",
    "plackett_luce",
    "regression",
    "binary",
]
UNRANKED = -1


@dataclass(frozen=True, kw_only=True)
class PreferenceTargets:
    """What is known about the responses of each row."""

    valid: Bool[Tensor, "rows k"]
    """True where there is a response."""
    rank: Int[Tensor, "rows k"]
    """0 is the best; equal ranks are ties; UNRANKED where nothing is known."""
    rating: Float[Tensor, "rows k"]
    """Absolute quality; NaN where unknown."""
    label: Float[Tensor, "rows k"]
    """1 for good, 0 for bad; NaN where unknown."""
    probability: Float[Tensor, " rows"]
    """Of the stated order being right: 1 for a hard label."""
    margin: Float[Tensor, " rows"]
    """How much better the better response is."""
    weight: Float[Tensor, " rows"]
    """Of the row in the mean."""
    pair_weight: Float[Tensor, "rows k k"]
    """Of the pair of a better i and a worse j in its row's mean."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which loss, and its constants."""

    kind: PreferenceLoss = "bradley_terry"
    smoothing: float = 0.0
    """Share of the label given to the other order (bradley_terry, margin, scaled)."""
    flip_rate: float = 0.0
    """robust: the share of labels believed to be flipped, below 0.5."""
    hinge_margin: float = 1.0
    tie_parameter: float = 2.0
    """rao_kupper: theta > 1; davidson: nu > 0."""
    origin: float = 0.0
    """binary: the score between bad and good."""
    learn_ties: bool = True
    """bradley_terry, margin: whether equal ranks pull their scores together, or say nothing."""
    center_coef: float = 0.0
    l2_coef: float = 0.0


def bradley_terry(
    difference: Float[Tensor, "*pairs"], probability: float | Float[Tensor, "*#pairs"] = 1.0
) -> Float[Tensor, "*pairs"]:
    """-p log sigmoid(d) - (1 - p) log sigmoid(-d), as softplus so that no difference overflows; ln 2 at d = 0.

    Bradley and Terry 1952; Stiennon et al. 2020, section 3.4.
    """
    return probability * softplus(-difference) + (1.0 - probability) * softplus(difference)


def robust(difference: Float[Tensor, "*pairs"], flip_rate: float) -> Float[Tensor, "*pairs"]:
    """The Bradley-Terry loss of clean labels, in expectation over labels flipped at `flip_rate` (Chowdhury et al. 2024).

    It may be negative: what is unbiased is not bounded.
    """
    kept, flipped = softplus(-difference), softplus(difference)
    return ((1.0 - flip_rate) * kept - flip_rate * flipped) / (1.0 - 2.0 * flip_rate)


def rao_kupper(difference: Float[Tensor, "*pairs"], tied: Bool[Tensor, "*pairs"], theta: float) -> Tensor:
    """Negative log-likelihood with ties, P(i over j) = e^ri / (e^ri + theta e^rj) (Rao and Kupper 1967)."""
    shift = math.log(theta)
    win, loss = softplus(shift - difference), softplus(shift + difference)
    return torch.where(tied, win + loss - math.log(theta**2 - 1.0), win)


def davidson(difference: Float[Tensor, "*pairs"], tied: Bool[Tensor, "*pairs"], nu: float) -> Tensor:
    """Negative log-likelihood with ties, P(tie) proportional to nu e^((ri + rj) / 2) (Davidson 1970)."""
    half, log_nu = difference / 2.0, difference.new_full((), math.log(nu)).expand(difference.shape)
    normaliser = torch.stack([half, -half, log_nu]).logsumexp(0)
    return normaliser - torch.where(tied, log_nu, half)


def plackett_luce(scores: Float[Tensor, "rows k"], rank: Int[Tensor, "rows k"]) -> Float[Tensor, " rows"]:
    """-log P(order) = sum over all but the last of logsumexp(those not better) - own score (Plackett 1975, Luce 1959).

    Ties are treated as by Breslow (1974): members of one group share a denominator, the last group adds nothing.
    """
    ranked = rank != UNRANKED
    not_better = (rank.unsqueeze(2) <= rank.unsqueeze(1)) & ranked.unsqueeze(1) & ranked.unsqueeze(2)
    rest = scores.unsqueeze(1).masked_fill(~not_better, -torch.inf)
    chosen = ranked & (rank < rank.max(dim=1, keepdim=True).values)
    terms = rest.masked_fill(~chosen.unsqueeze(2), 0.0).logsumexp(2) - scores
    return torch.where(chosen, terms, 0.0).sum(1)


def pair_masks(rank: Int[Tensor, "rows k"]) -> tuple[Bool[Tensor, "rows k k"], Bool[Tensor, "rows k k"]]:
    """Where i is better than j, and where i and j tie (each tie once)."""
    first, second = rank.unsqueeze(2), rank.unsqueeze(1)
    both = (first != UNRANKED) & (second != UNRANKED)
    upper = torch.ones(rank.shape[1], rank.shape[1], dtype=torch.bool, device=rank.device).triu(1)
    return both & (first < second), both & (first == second) & upper


def usable_rows(targets: PreferenceTargets, settings: LossSettings) -> Bool[Tensor, " rows"]:
    """Rows that the loss learns anything from; only these count in its denominator."""
    kind = settings.kind
    if kind == "regression":
        return (targets.valid & ~targets.rating.isnan()).any(1)
    if kind == "binary":
        return (targets.valid & ~targets.label.isnan()).any(1)
    better, tied = pair_masks(targets.rank)
    pairs = better | tied if _learns_ties(settings) else better
    ordered = pairs.flatten(1).any(1)
    return ordered & (targets.margin > 0) if kind == "scaled" else ordered


def row_losses(
    scores: Float[Tensor, "rows k"], targets: PreferenceTargets, settings: LossSettings
) -> Float[Tensor, " rows"]:
    """The loss of each row, unweighted and without the regularisers; 0 for a row it learns nothing from."""
    if settings.kind == "regression":
        known = targets.valid & ~targets.rating.isnan()
        return _mean_over((scores - targets.rating.nan_to_num()).square(), known)
    if settings.kind == "binary":
        known = targets.valid & ~targets.label.isnan()
        losses = binary_cross_entropy_with_logits(
            scores - settings.origin, targets.label.nan_to_num(), reduction="none"
        )
        return _mean_over(losses, known)
    if settings.kind == "plackett_luce":
        return plackett_luce(scores, targets.rank)
    return _pairwise(scores, targets, settings)


def preference_loss(
    scores: Float[Tensor, "rows k"], targets: PreferenceTargets, settings: LossSettings, *, row_weight: float
) -> Float[Tensor, ""]:
    """Weighted row losses and regularisers over the usable rows / `row_weight`, their global weight."""
    usable = usable_rows(targets, settings)
    losses = row_losses(scores, targets, settings)
    if settings.center_coef:
        losses = losses + settings.center_coef * centering(scores, targets.valid)
    if settings.l2_coef:
        losses = losses + settings.l2_coef * _mean_over(scores.square(), targets.valid)
    return torch.where(usable, losses * targets.weight, 0.0).sum() / row_weight


def centering(scores: Float[Tensor, "rows k"], valid: Bool[Tensor, "rows k"]) -> Float[Tensor, " rows"]:
    """(sum of the row's scores)^2 x 4 / K^2: for a pair (r1 + r2)^2, which fixes the origin that differences leave free.

    Eisenstein et al. 2023, equation 2.
    """
    return (2.0 * _mean_over(scores, valid)).square()


def ordered_share(scores: Float[Tensor, "rows k"], rank: Int[Tensor, "rows k"]) -> Float[Tensor, " rows"]:
    """Share of each row's strict pairs that the scores order as ranked, equal scores counting half; NaN without any."""
    better, _ = pair_masks(rank)
    difference = scores.unsqueeze(2) - scores.unsqueeze(1)
    right = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (right * better).flatten(1).sum(1) / better.flatten(1).sum(1)


def _pairwise(
    scores: Float[Tensor, "rows k"], targets: PreferenceTargets, settings: LossSettings
) -> Float[Tensor, " rows"]:
    """Mean over the row's pairs, all taken from one forward pass of its K responses (Ouyang et al. 2022, equation 1)."""
    better, tied = pair_masks(targets.rank)
    # A response that is not there is no number: keep it out of the arithmetic, not only out of the sum.
    filled = scores.masked_fill(~targets.valid, 0.0)
    difference = filled.unsqueeze(2) - filled.unsqueeze(1)
    margin = targets.margin.view(-1, 1, 1)
    stated = targets.probability.view(-1, 1, 1) * (1.0 - 2.0 * settings.smoothing) + settings.smoothing
    if settings.kind == "rao_kupper":
        losses = rao_kupper(difference, tied, settings.tie_parameter)
    elif settings.kind == "davidson":
        losses = davidson(difference, tied, settings.tie_parameter)
    elif settings.kind == "hinge":
        losses = (settings.hinge_margin - difference).clamp_min(0.0)
    elif settings.kind == "robust":
        losses = robust(difference, settings.flip_rate)
    elif settings.kind == "scaled":
        losses = margin * bradley_terry(difference, stated)
    else:
        shifted = difference - margin if settings.kind == "margin" else difference
        losses = torch.where(tied, bradley_terry(difference, 0.5), bradley_terry(shifted, stated))
    counted = better | tied if _learns_ties(settings) else better
    return _mean_over((losses * targets.pair_weight).flatten(1), counted.flatten(1))


def _learns_ties(settings: LossSettings) -> bool:
    always, never = ("rao_kupper", "davidson"), ("hinge", "scaled", "robust", "plackett_luce")
    return settings.kind in always or (settings.learn_ties and settings.kind not in never)


def _mean_over(values: Float[Tensor, "rows n"], mask: Bool[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp_min(1)
