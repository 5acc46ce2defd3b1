"""From tokens that older policies drew to the update of a newer one: weights and masks of the policy's objective.

Three policies (decoupled PPO, Hilton et al. 2022, "Batch size-invariance for policy optimization"; asynchronous RLHF by
Fu et al. 2025, AReaL): *behaviour* drew the token, *proximal* is the learner's at the update's start and the denominator
of the clipped ratio, and the current one is optimised. The clipped objective of each token is multiplied by
w = proximal / behaviour, so that its expectation is the one under proximal; the pieces here bound what a rare token does
to it. All log-probabilities are in nats, of the tokens drawn; nothing here has a gradient.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rayrlhf.algorithms.kl import LOG_RATIO_BOUND

Band = Sequence[float]
"""The lowest and the highest ratio that is kept, both included."""


def masked_log_ratio(
    new: Float[Tensor, "batch time"], old: Float[Tensor, "batch time"], where: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """new - old in nats, bounded so that its exponential and that one's gradient are finite; 0 outside of `where`."""
    return torch.where(where, new - old, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def probability_ratio(
    new: Float[Tensor, "batch time"], drawn: Float[Tensor, "batch time"], where: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """exp(new - drawn), detached, at the tokens of `where`; 1 elsewhere."""
    return masked_log_ratio(new, drawn, where).detach().exp()


def importance_weights(
    proximal: Float[Tensor, "batch time"],
    behaviour: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    cap: float | None,
) -> Float[Tensor, "batch time"]:
    """min(exp(proximal - behaviour), cap), detached: truncated importance sampling (Ionides 2008); 0 outside of the mask.

    Truncation bounds the variance, at the price of a bias towards what behaviour draws: the expectation of a whole weight
    is 1, that of a truncated one less. `cap` None leaves them whole.
    """
    ratio = probability_ratio(proximal, behaviour, loss_mask)
    return torch.where(loss_mask, ratio if cap is None else ratio.clamp(max=cap), 0.0)


def tokens_inside(
    proximal: Float[Tensor, "batch time"],
    behaviour: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    band: Band,
) -> Bool[Tensor, "batch time"]:
    """The trained tokens whose own exp(proximal - behaviour) lies in the band: IcePop (Ling Team 2025, Ring-1T).

    IcePop multiplies those by that ratio and drops the others, on both sides: a ratio far from 1 says that the two
    policies no longer speak of the same token, which no bounded weight mends. Published band: 0.5 to 5.
    """
    low, high = band
    ratio = torch.where(loss_mask, proximal - behaviour, 0.0).detach().exp()
    return loss_mask & (ratio >= low) & (ratio <= high)


def responses_inside(
    proximal: Float[Tensor, "batch time"],
    behaviour: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    band: Band,
) -> Bool[Tensor, " batch"]:
    """The rows whose exp(mean over their trained tokens of (proximal - behaviour)) lies in the band.

    That geometric mean of the token ratios is the ratio of the whole response brought to the size of one token's, as in
    GSPO (Zheng et al. 2025); as a mask it is Geo-Mask of Li, Liu et al. 2025 ("When Speed Kills Stability", part 3),
    with 0.5 to 2 as its typical band, and prime-rl's with 0.1 to 10. A response of any length is judged alike, where the
    product of its ratios would leave the longest out. A row without trained tokens is inside: it has nothing to mask.
    """
    low, high = band
    # In float64: of a response of thousands of tokens it is a sum of as many small terms of both signs.
    gap = torch.where(loss_mask, proximal - behaviour, 0.0).detach().double()
    mean = (gap.sum(dim=1) / loss_mask.sum(dim=1).clamp(min=1)).exp()
    return (mean >= low) & (mean <= high)


def off_policy_weights(
    proximal: Float[Tensor, "batch time"],
    behaviour: Float[Tensor, "batch time"],
    loss_mask: Bool[Tensor, "batch time"],
    *,
    cap: float | None,
    band: Band | None,
    sequence_band: Band | None,
) -> Float[Tensor, "batch time"]:
    """What the clipped objective of each token is multiplied by, detached; 0 where it is masked. None leaves a step out.

    Both masks are of the ratios as they are, so that neither a truncated weight nor a token that the other mask takes
    changes what is kept; what is left of both is truncated at `cap`. Masked tokens stay in the count that the loss is
    divided by: a minibatch of which much is masked has a smaller gradient, and no split of it changes that.
    """
    kept = loss_mask
    if band is not None:
        kept = kept & tokens_inside(proximal, behaviour, loss_mask, band=band)
    if sequence_band is not None:
        kept = kept & responses_inside(proximal, behaviour, loss_mask, band=sequence_band).unsqueeze(1)
    return torch.where(kept, importance_weights(proximal, behaviour, loss_mask, cap=cap), 0.0)
