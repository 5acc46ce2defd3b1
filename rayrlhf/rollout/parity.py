"""The gate before the first update: same weights, same tokens, so engine and learner must give the same log-probs."""

import math
from dataclasses import dataclass

from rayrlhf.algorithms.mismatch import Mismatch
from rayrlhf.config import ParityConfig
from rayrlhf.errors import ParityError


@dataclass(frozen=True, kw_only=True)
class ParityThresholds:
    """Upper bounds on |engine - learner| log-prob in nats, and on the share of ratios outside [0.9, 1.1]."""

    p50: float
    p99: float
    max_outside: float


FLOAT32 = ParityThresholds(p50=1.0e-4, p99=1.0e-3, max_outside=1.0e-3)
"""Two float32 implementations differ by rounding: up to 5e-5 nats on weights blown up to exaggerate it, in our tests."""

BFLOAT16 = ParityThresholds(p50=5.0e-2, p99=5.0e-1, max_outside=0.15)
"""One side in bfloat16, with 8 bits of mantissa. A small trained model measured p50 7e-3 and p99 5e-2; a 0.5 B model
compared with itself at another micro-batch size had 8 % of its ratios outside the band (huggingface/trl#6789). A forgotten
temperature of 0.7 gives p50 0.4 and 87 % outside. A mean is not tested: it is blind to the tail."""


def parity_thresholds(parity: ParityConfig, *, engine_dtype: str, learner_dtype: str) -> ParityThresholds:
    """The configured thresholds, else those of the coarser of the two dtypes."""
    default = FLOAT32 if engine_dtype == learner_dtype == "float32" else BFLOAT16
    return ParityThresholds(
        p50=parity.p50 if parity.p50 is not None else default.p50,
        p99=parity.p99 if parity.p99 is not None else default.p99,
        max_outside=parity.max_outside if parity.max_outside is not None else default.max_outside,
    )


def check_parity(mismatch: Mismatch, thresholds: ParityThresholds, *, temperature: float) -> None:
    """Raise ParityError, with the figures and a suspect, when a threshold is passed or a figure is not a number."""
    pairs = {
        "p50": (mismatch.p50, thresholds.p50),
        "p99": (mismatch.p99, thresholds.p99),
        "outside": (mismatch.outside, thresholds.max_outside),
    }
    over = [f"{name} {value:.2g} > {limit:.2g}" for name, (value, limit) in pairs.items() if not value <= limit]
    if over:
        raise ParityError(
            f"Engine and learner disagree on {mismatch.tokens} tokens of the same weights: {', '.join(over)} "
            f"(p50 {mismatch.p50:.2g}, p95 {mismatch.p95:.2g}, p99 {mismatch.p99:.2g}, max {mismatch.max:.2g} nats, "
            f"{mismatch.outside:.1%} of ratios outside [0.9, 1.1]); {_suspect(mismatch, thresholds, temperature)}."
        )


def _suspect(mismatch: Mismatch, thresholds: ParityThresholds, temperature: float) -> str:
    if not math.isfinite(mismatch.max):
        return "a log-prob is not finite, so look for broken weights first"
    if mismatch.p50 <= thresholds.p50:
        return (
            "most tokens agree and a tail does not, which points to low-precision arithmetic on one side, "
            "or to a prefix cache that survived a weight update"
        )
    if temperature != 1.0:
        return (
            f"most tokens differ, and the temperature is {temperature}: likely one side takes its log-probs before "
            "dividing the logits by it, else the two hold different weights"
        )
    return (
        "most tokens differ at temperature 1, so likely the two hold different weights: another version, "
        "an output head tied to the embedding on one side only, or another dtype than configured"
    )
