"""The parity gate: thresholds by dtype, and a suspect with every refusal."""

import pickle

import numpy as np
import pytest

from rayrlhf.algorithms.mismatch import Mismatch, mismatch_quantiles
from rayrlhf.config import ParityConfig
from rayrlhf.errors import ParityError
from rayrlhf.rollout.parity import (
    BFLOAT16,
    FLOAT32,
    Origin,
    ParityThresholds,
    check_parity,
    difference,
    parity_thresholds,
)
from rayrlhf.types import SampleId, Trajectory, VersionSpan


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


def test_a_tail_before_any_update_points_to_a_feature_left_out() -> None:
    with pytest.raises(ParityError, match=r"before the first update.*a tail does not.*leaves a feature") as caught:
        check_parity(mismatch(p99=2.0, max=9.0, outside=0.03), FLOAT32, temperature=1.0)
    assert "prefix cache" not in str(caught.value), "nothing has been updated that a cache could survive"


@pytest.mark.parametrize("origin", ["published", "updated"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize(
    "figures", [{"p99": 2.0, "max": 9.0, "outside": 0.03}, {"p50": 3.0, "max": 9.0, "outside": 1.0}]
)
def test_what_agreed_as_loaded_and_no_more_points_to_the_weight_sync(
    origin: Origin, temperature: float, figures: dict[str, float]
) -> None:
    with pytest.raises(ParityError, match=r"version 7.*the weight sync is the suspect"):
        check_parity(mismatch(**figures), FLOAT32, temperature=temperature, origin=origin, version=7)


@pytest.mark.parametrize("origin", ["loaded", "published", "updated"])
def test_rounding_says_which_key_to_raise_to_what(origin: Origin) -> None:
    """The figures of an engine whose kernels are 2e-3 nats off."""
    off = mismatch(p50=8e-5, p95=9e-4, p99=1.93e-3, max=4.1e-3)
    with pytest.raises(ParityError, match=r"round otherwise.*set parity\.p99=0\.004 to go on") as caught:
        check_parity(off, FLOAT32, temperature=1.0, origin=origin)
    assert "parity.p50=" not in str(caught.value)
    raised = parity_thresholds(ParityConfig(p99=0.004), engine_dtype="float32", learner_dtype="float32")
    check_parity(off, raised, temperature=1.0, origin=origin)


def test_a_small_difference_that_an_update_brought_is_not_called_rounding() -> None:
    """Weights that an engine kept differ little after one update with a small learning rate."""
    brought = mismatch(p50=2e-4, p99=3e-3, max=8e-3)
    with pytest.raises(ParityError, match="the weight sync is the suspect"):
        check_parity(brought, FLOAT32, temperature=1.0, origin="updated", version=1, loaded_p99=2e-6)
    with pytest.raises(ParityError, match="to go on"):
        check_parity(brought, FLOAT32, temperature=1.0, origin="updated", version=1, loaded_p99=9e-4)


def test_every_key_that_has_to_be_raised_is_named() -> None:
    with pytest.raises(ParityError, match=r"set parity\.p50=0\.0007 parity\.p99=0\.02 to go on"):
        check_parity(mismatch(p50=3.1e-4, p99=9.9e-3, max=0.03), FLOAT32, temperature=1.0)


@pytest.mark.parametrize("figures", [{"p99": 2e-3, "max": 0.2, "outside": 0.002}, {"p99": 0.05, "max": 0.08}])
def test_what_is_larger_than_rounding_is_not_called_rounding(figures: dict[str, float]) -> None:
    with pytest.raises(ParityError) as caught:
        check_parity(mismatch(**figures), FLOAT32, temperature=1.0)
    assert "to go on" not in str(caught.value)


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


def drawn(ids: list[int], logprobs: list[float], *versions: int) -> Trajectory:
    length = len(ids) // len(versions)
    spans = tuple(VersionSpan(version=v, start=i * length, end=(i + 1) * length) for i, v in enumerate(versions))
    return Trajectory(
        sample_id=SampleId("probe", 0, 0, 0),
        prompt_ids=np.zeros(2, dtype=np.int32),
        response_ids=np.array(ids, dtype=np.int32),
        rollout_logprobs=np.array(logprobs, dtype=np.float32),
        finish="length",
        version_spans=spans,
    )


def test_two_engines_are_compared_up_to_the_first_token_that_differs() -> None:
    one = drawn([5, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0], 3)
    assert difference(one, drawn([5, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0], 3)) == 0.0
    assert difference(one, drawn([5, 6, 9, 8], [-1.25, -2.5, -9.0, -9.0], 3)) == pytest.approx(0.375)
    assert difference(one, drawn([5, 6], [-1.5, -2.5], 3)) == pytest.approx(0.5)


def test_other_versions_or_another_first_token_tell_nothing() -> None:
    one = drawn([5, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0], 3)
    assert difference(one, drawn([4, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0], 3)) is None
    assert difference(one, drawn([5, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0], 4)) is None
    assert difference(one, drawn([5, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0], 3, 4)) is None
