"""The guard over simulated judges: faithful proxies, flawed ones, and what is kept."""

import json

import numpy as np
import pytest

from rayrlhf.config import GuardConfig
from rayrlhf.reward.guard import Observation, OveroptimizationGuard

PROMPTS = 128


def course(*, falls: bool, seed: int, evaluations: int = 12) -> list[Observation]:
    """A judge in [0, 1] on fixed prompts: it rises and levels off, or turns down once KL passes 10; the proxy rises."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(scale=0.1, size=PROMPTS)
    made = []
    for n in range(evaluations):
        kl = 2.0 * n
        gain = 0.4 * (1.0 - np.exp(-kl / 4.0)) - (0.02 * max(0.0, kl - 10.0) if falls else 0.0)
        judged = np.clip(0.5 + gain + ease + rng.normal(scale=0.15, size=PROMPTS), 0.0, 1.0)
        made.append(Observation(step=10 * n, kl=kl, proxy=0.5 + 0.1 * n, judged=tuple(judged.tolist())))
    return made


@pytest.mark.parametrize("seed", range(5))
def test_a_faithful_proxy_does_not_trip_it_and_a_flawed_one_does(seed: int) -> None:
    faithful, flawed = (OveroptimizationGuard(GuardConfig()) for _ in range(2))
    assert not any(faithful.observe(seen).tripped for seen in course(falls=False, seed=seed))
    tripped = [seen.step for seen in course(falls=True, seed=seed) if flawed.observe(seen).tripped]
    assert tripped
    assert 60 <= tripped[0] <= 110
    assert flawed.peak_step in range(20, 70)


def test_it_waits_for_its_patience_and_says_what_it_saw() -> None:
    guard = OveroptimizationGuard(GuardConfig(patience=3))
    findings = [guard.observe(seen) for seen in course(falls=True, seed=0, evaluations=20)]
    first = next(i for i, finding in enumerate(findings) if finding.tripped)
    assert all(finding.metrics["guard/below_peak"] > 3.0 for finding in findings[first - 2 : first + 1])
    assert "while the proxy went from" in findings[first].told
    assert findings[first].metrics["guard/trips"] == 1.0
    curve = guard.curve()
    assert curve is not None
    assert curve.peak is not None
    assert 1.0 < curve.peak**2 < 38.0


def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped() -> None:
    seen = course(falls=True, seed=3)
    straight, stopped = OveroptimizationGuard(GuardConfig()), OveroptimizationGuard(GuardConfig())
    expected = [straight.observe(one) for one in seen]
    for one in seen[:6]:
        stopped.observe(one)
    resumed = OveroptimizationGuard(GuardConfig())
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [resumed.observe(one) for one in seen[6:]] == expected[6:]
