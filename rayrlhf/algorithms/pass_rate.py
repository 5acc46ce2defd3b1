"""How often a verifier passes what a policy answers, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959964
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with the interval that holds the true one at a confidence of 95 %."""

    value: float
    low: float
    high: float
    count: int
    """What the share is of: responses for a pass rate, prompts for pass@k."""


def is_binary(scores: Sequence[float]) -> bool:
    """Whether every score is 0 or 1: what a verifier gives, and what can be counted."""
    return len(scores) > 0 and bool(np.isin(np.asarray(scores, dtype=np.float64), (0.0, 1.0)).all())


def pass_rate(groups: Sequence[Sequence[float]]) -> Rate:
    """Share of responses that pass; `groups` holds the scores (0 or 1) of each prompt's responses.

    The interval is Wilson's (1927) for the effective number of responses (Kish 1965): responses to one prompt pass or fail
    together, so that 4 to each of 8 prompts tell less than 32 prompts. At worst they count as one response a prompt,
    which is taken where every one passes or none does and nothing tells them apart.
    """
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    passed = np.array([sum(group) for group in groups], dtype=np.float64)
    prompts, responses = len(groups), float(sizes.sum())
    rate = float(passed.sum() / responses)
    effective = float(prompts)
    if prompts > 1:
        # Variance of a ratio of sums over prompts (Cochran 1977, equation 6.13, without the finite population).
        variance = prompts / (prompts - 1) * float(np.square(passed - rate * sizes).sum()) / responses**2
        if variance > 0.0:
            effective = min(max(rate * (1.0 - rate) / variance, float(prompts)), responses)
    low, high = wilson_interval(rate, effective)
    return Rate(value=rate, low=low, high=high, count=int(responses))


def pass_at_k(groups: Sequence[Sequence[float]], k: int) -> Rate | None:
    """Chance that at least one of k responses to a prompt passes: mean of 1 - C(n - c, k) / C(n, k) over the prompts.

    That is unbiased for n responses of which c pass (Chen et al. 2021, equation 1). The interval is Wilson's for the number
    of prompts. Prompts with fewer than k responses are left out; None where no prompt has k.
    """
    usable = [group for group in groups if len(group) >= k]
    if not usable:
        return None
    value = float(np.mean([_chance(len(group), round(sum(group)), k) for group in usable]))
    low, high = wilson_interval(value, len(usable))
    return Rate(value=value, low=low, high=high, count=len(usable))


def wilson_interval(rate: float, count: float | int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share `rate` of `count` independent trials, at a confidence of 95 %."""
    z2 = Z_95**2
    middle = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # Rounding alone may put an end beyond the share itself where that is 0 or 1.
    return max(0.0, min(middle - half, rate)), min(1.0, max(middle + half, rate))


def _chance(n: int, c: int, k: int) -> float:
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
