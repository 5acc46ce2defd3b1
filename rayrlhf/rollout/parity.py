"""The parity gate: same weights, same tokens, so engine and learner must give the same log-probs."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayrlhf.algorithms.mismatch import Mismatch
from rayrlhf.config import ParityConfig
from rayrlhf.errors import ParityError
from rayrlhf.types import Trajectory

Origin = Literal["loaded", "published", "updated"]
"""Where the engine has its weights from: the policy's directory, the learner's first publication, or a later one."""


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


ROUNDING = ParityThresholds(p50=1.0e-3, p99=1.0e-2, max_outside=0.0)
"""Up to here two float32 implementations may differ without a fault in either: state spaces, routers and long sums of
vLLM's CPU kernels measured p99 2e-3 on exaggerated weights. A feature that one side leaves out can look the same."""


def parity_thresholds(parity: ParityConfig, *, engine_dtype: str, learner_dtype: str) -> ParityThresholds:
    """The configured thresholds, else those of the coarser of the two dtypes."""
    default = FLOAT32 if engine_dtype == learner_dtype == "float32" else BFLOAT16
    return ParityThresholds(
        p50=parity.p50 if parity.p50 is not None else default.p50,
        p99=parity.p99 if parity.p99 is not None else default.p99,
        max_outside=parity.max_outside if parity.max_outside is not None else default.max_outside,
    )


def check_parity(
    mismatch: Mismatch,
    thresholds: ParityThresholds,
    *,
    temperature: float,
    origin: Origin = "loaded",
    version: int = 0,
    loaded_p99: float = math.inf,
) -> None:
    """Raise ParityError, with the figures and a suspect, when a threshold is passed or a figure is not a number.

    `origin` and `version` are the engine's; "published" and "updated" suppose that the gate was passed before, on the
    weights loaded from disk, with `loaded_p99`: rounding does not grow tenfold with an update.
    """
    pairs = {
        "p50": (mismatch.p50, thresholds.p50),
        "p99": (mismatch.p99, thresholds.p99),
        "outside": (mismatch.outside, thresholds.max_outside),
    }
    over = [f"{name} {value:.2g} > {limit:.2g}" for name, (value, limit) in pairs.items() if not value <= limit]
    if over:
        raise ParityError(
            f"Engine and learner disagree on {mismatch.tokens} tokens of the same weights ({_where(origin, version)}): "
            f"{', '.join(over)} (p50 {mismatch.p50:.2g}, p95 {mismatch.p95:.2g}, p99 {mismatch.p99:.2g}, max "
            f"{mismatch.max:.2g} nats, {mismatch.outside:.1%} of ratios outside [0.9, 1.1]); "
            f"{_suspect(mismatch, thresholds, temperature, origin, loaded_p99)}."
        )


def _where(origin: Origin, version: int) -> str:
    if origin == "loaded":
        return "version 0, which both loaded from disk, before the first update"
    if origin == "published":
        return f"version {version}, as published to the engine, before another update"
    return f"version {version}, after a weight update"


def _suspect(
    mismatch: Mismatch, thresholds: ParityThresholds, temperature: float, origin: Origin, loaded_p99: float
) -> str:
    if not math.isfinite(mismatch.max):
        return "a log-prob is not finite, so look for broken weights first"
    if _looks_like_rounding(mismatch) and (origin == "loaded" or mismatch.p99 <= 10.0 * loaded_p99):
        return _how_to_go_on(mismatch, thresholds)
    if origin != "loaded":
        return (
            "they agreed on the weights loaded from disk, so the weight sync is the suspect: the engine did not take "
            "over all that was published, or kept a copy or a prefix cache of the weights before"
        )
    if mismatch.p50 <= thresholds.p50:
        return (
            "most tokens agree and a tail does not, before any weight update: likely one side leaves a feature of the "
            "architecture out (an attention soft cap, window or sink, a router's bias), or computes in another dtype"
        )
    if temperature != 1.0:
        return (
            f"most tokens differ, and the temperature is {temperature}: likely one side takes its log-probs before "
            "dividing the logits by it, else the two hold different weights"
        )
    return (
        "most tokens differ at temperature 1, so likely the two hold different weights (an output head tied to the "
        "embedding on one side only, another dtype than configured), or one side leaves a feature of the architecture out"
    )


def _looks_like_rounding(mismatch: Mismatch) -> bool:
    return mismatch.p50 <= ROUNDING.p50 and mismatch.p99 <= ROUNDING.p99 and mismatch.outside <= ROUNDING.max_outside


def _how_to_go_on(mismatch: Mismatch, thresholds: ParityThresholds) -> str:
    """Which keys to raise, to twice what was measured: rounding moves from batch to batch."""
    raised = [
        f"parity.{name}={_one_digit_up(2 * value)}"
        for name, value, limit in (("p50", mismatch.p50, thresholds.p50), ("p99", mismatch.p99, thresholds.p99))
        if value > limit
    ]
    return (
        "the differences are small and no ratio leaves the band, as when the engine's kernels for this architecture round "
        f"otherwise than the learner's: set {' '.join(raised)} to go on, and watch that parity/p99 stays flat, for a "
        "feature of the attention that one side leaves out looks the same while weights are small, and grows with them"
    )


def _one_digit_up(value: float) -> str:
    """The value rounded up to one significant digit, as one writes it into a configuration."""
    step = 10.0 ** math.floor(math.log10(value))
    return f"{math.ceil(value / step) * step:.1g}"


def difference(one: Trajectory, other: Trajectory) -> float | None:
    """Median |log-prob - log-prob| of the same tokens that two engines drew under one version, in nats.

    Over the tokens up to the first that differs; None where that is the first of all, or the versions differ.
    """
    if {span.version for span in (*one.version_spans, *other.version_spans)} != {one.min_version}:
        return None
    length = min(len(one.response_ids), len(other.response_ids))
    same = one.response_ids[:length] == other.response_ids[:length]
    common = length if same.all() else int(np.argmin(same))
    if common == 0:
        return None
    return float(np.median(np.abs(one.rollout_logprobs[:common] - other.rollout_logprobs[:common])))
