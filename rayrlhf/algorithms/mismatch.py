"""How far apart engine and learner are on the same tokens under the same weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RATIO_BAND = (0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Quantiles of |engine - learner| log-prob in nats: a mean is blind to the tail that breaks training."""

    p50: float
    p95: float
    p99: float
    max: float
    outside: float
    """Share of tokens whose probability ratio learner / engine lies outside [0.9, 1.1]."""
    tokens: int


def mismatch_quantiles(rollout_logprobs: Sequence[np.ndarray], learner_logprobs: Sequence[np.ndarray]) -> Mismatch:
    """Compare response by response; both sequences hold one array of token log-probs a response."""
    engine = np.concatenate([np.asarray(row, dtype=np.float64) for row in rollout_logprobs])
    learner = np.concatenate([np.asarray(row, dtype=np.float64) for row in learner_logprobs])
    if engine.shape != learner.shape:
        raise ValueError(f"engine and learner disagree about the number of tokens: {engine.size} and {learner.size}")
    gap = np.abs(engine - learner)
    ratio = np.exp(learner - engine)
    p50, p95, p99 = (float(q) for q in np.quantile(gap, [0.5, 0.95, 0.99]))
    outside = float(np.mean((ratio < RATIO_BAND[0]) | (ratio > RATIO_BAND[1])))
    return Mismatch(p50=p50, p95=p95, p99=p99, max=float(gap.max()), outside=outside, tokens=int(gap.size))
