"""The parity gate: thresholds by dtype, and a suspect with every refusal."""

import pickle

import numpy as np
import pytest

from rayrlhf.algorithms.mismatch import Mismatch, mismatch_quantiles
from rayrlhf.config import ParityConfig
from rayrlhf.errors import ParityError
from rayrlhf.rollout.parity import BFLOAT16, FLOAT32, ParityThresholds, check_parity, parity_thresholds


def mismatch(**figures: float) -> Mismatch:
    defaults = {"p50": 1e-6, "p95": 1e-5, "p99": 2e-5, "max": 5e-5, "outside": 0.0}
    return Mismatch(**{**defaults, **figures}, tokens=500)


def sampled_at(temperature: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-probs of tokens drawn at a temperature, and of the same tokens with the temperature forgotten."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 50)) * 2
    scaled = logits / temperature
    true = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    raw = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    drawn = (true + rng.gumbel(size=true.shape)).argmax(-1)
    rows = np.arange(len(drawn))
    return [true[rows, drawn]], [raw[rows, drawn]]


def test_float32_needs_both_sides_in_float32() -> None:
    config = ParityConfig()
    assert parity_thresholds(config, engine_dtype="float32", learner_dtype="float32") == FLOAT32
    assert parity_thresholds(config, engine_dtype="bfloat16", learner_dtype="float32") == BFLOAT16
    assert parity_thresholds(config, engine_dtype="float32", learner_dtype="bfloat16") == BFLOAT16


def test_configured_thresholds_win_one_by_one() -> None:
    thresholds = parity_thresholds(
        ParityConfig(p99=0.01, max_outside=0.0), engine_dtype="float32", learner_dtype="float32"
    )
    assert thresholds == ParityThresholds(p50=FLOAT32.p50, p99=0.01, max_outside=0.0)


def test_figures_at_the_threshold_pass() -> None:
    check_parity(mismatch(p50=1e-4, p99=1e-3, outside=1e-3), FLOAT32, temperature=1.0)


@pytest.mark.parametrize("figure", [{"p50": 1.1e-4}, {"p99": 1.1e-3}, {"outside": 1.1e-3}, {"p50": float("nan")}])
def test_each_figure_can_refuse(figure: dict[str, float]) -> None:
    with pytest.raises(ParityError, match=next(iter(figure))):
        check_parity(mismatch(**figure), FLOAT32, temperature=1.0)


@pytest.mark.parametrize("thresholds", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("temperature", [0.6, 0.7, 1.3])
def test_a_forgotten_temperature_is_caught_and_named(thresholds: ParityThresholds, temperature: float) -> None:
    engine, forgotten = sampled_at(temperature)
    check_parity(mismatch_quantiles(engine, engine), thresholds, temperature=temperature)
    with pytest.raises(ParityError, match=f"the temperature is {temperature}.*before dividing"):
        check_parity(mismatch_quantiles(engine, forgotten), thresholds, temperature=temperature)


def test_a_tail_points_to_arithmetic_or_a_stale_cache() -> None:
    with pytest.raises(ParityError, match=r"a tail does not.*prefix cache"):
        check_parity(mismatch(p99=2.0, max=9.0, outside=0.03), FLOAT32, temperature=1.0)


def test_everything_off_at_temperature_one_points_to_the_weights() -> None:
    with pytest.raises(ParityError, match="different weights"):
        check_parity(mismatch(p50=3.0, p95=8.0, p99=9.0, max=9.0, outside=1.0), FLOAT32, temperature=1.0)


def test_a_log_prob_that_is_not_finite_is_named_first() -> None:
    figures = mismatch(p50=float("nan"), p95=float("nan"), p99=float("nan"), max=float("nan"))
    with pytest.raises(ParityError, match="not finite"):
        check_parity(figures, BFLOAT16, temperature=0.7)


def test_the_error_carries_its_figures_through_pickling() -> None:
    with pytest.raises(ParityError) as caught:
        check_parity(mismatch(p50=0.5, outside=0.87), BFLOAT16, temperature=0.7)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert "500 tokens" in str(caught.value)
    assert "87.0%" in str(caught.value)
