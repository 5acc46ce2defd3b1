"""The guard against over-optimisation: what it has seen, and what is to be done."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrlhf.algorithms.overoptimization import RewardCurve, fit_reward_curve, standard_errors_below
from rayrlhf.config import GuardConfig


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One evaluation on the fixed held-out prompts."""

    step: int
    kl: float
    proxy: float
    judged: tuple[float, ...]
    """The judge's values, one a prompt, in a fixed order."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an evaluation means."""

    new_peak: bool
    tripped: bool
    told: str
    """In words, when it tripped."""
    metrics: dict[str, float]


class OveroptimizationGuard:
    """Follows the judge from evaluation to evaluation; plain state, so that a resumed run goes on with it."""

    def __init__(self, settings: GuardConfig) -> None:
        self._settings = settings
        self._seen: list[Observation] = []
        self._peak: Observation | None = None
        self._below = 0
        self.trips = 0

    @property
    def peak_step(self) -> int | None:
        """The step of the best evaluation so far."""
        return None if self._peak is None else self._peak.step

    def means(self) -> dict[int, float]:
        """The judge's mean at each evaluation, by step."""
        return {seen.step: float(np.mean(seen.judged)) for seen in self._seen}

    def observe(self, observation: Observation) -> Finding:
        """Take in one evaluation; it trips when the judge has been below its peak for `patience` evaluations."""
        self._seen.append(observation)
        new_peak = self._peak is None or np.mean(observation.judged) > np.mean(self._peak.judged)
        if new_peak:
            self._peak, self._below = observation, 0
            return Finding(new_peak=True, tripped=False, told="", metrics=self._metrics(observation, 0.0))
        assert self._peak is not None
        errors = standard_errors_below(np.array(observation.judged), np.array(self._peak.judged))
        self._below = self._below + 1 if errors > self._settings.standard_errors else 0
        tripped = self._below >= self._settings.patience
        if tripped:
            self.trips += 1
            self._below = 0
        told = self._told(observation, self._peak, errors) if tripped else ""
        return Finding(new_peak=False, tripped=tripped, told=told, metrics=self._metrics(observation, errors))

    def curve(self) -> RewardCurve | None:
        """R(d) = d (alpha - beta log d) through the judge's gains so far."""
        if not self._seen:
            return None
        distances = np.sqrt(np.maximum([seen.kl for seen in self._seen], 0.0))
        means = np.array([np.mean(seen.judged) for seen in self._seen])
        return fit_reward_curve(distances, means - means[0])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; see `load_state_dict`."""
        return {
            "seen": [[seen.step, seen.kl, seen.proxy, list(seen.judged)] for seen in self._seen],
            "peak": self.peak_step,
            "below": self._below,
            "trips": self.trips,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._seen = [
            Observation(step=step, kl=kl, proxy=proxy, judged=tuple(judged))
            for step, kl, proxy, judged in state["seen"]
        ]
        self._peak = next((seen for seen in self._seen if seen.step == state["peak"]), None)
        self._below, self.trips = state["below"], state["trips"]

    def _metrics(self, now: Observation, errors: float) -> dict[str, float]:
        found = {
            "guard/distance": math.sqrt(max(now.kl, 0.0)),
            "guard/judge": float(np.mean(now.judged)),
            "guard/below_peak": min(errors, 1e6),
            "guard/trips": float(self.trips),
        }
        curve = self.curve()
        if curve is not None:
            found |= {"guard/alpha": curve.alpha, "guard/beta": curve.beta}
        return found

    def _told(self, now: Observation, peak: Observation, errors: float) -> str:
        return (
            f"the judge has fallen from {np.mean(peak.judged):.3f} at step {peak.step} (KL {peak.kl:z.1f}) to "
            f"{np.mean(now.judged):.3f} at step {now.step} (KL {now.kl:z.1f}), {min(errors, 1e6):.1f} standard errors, while "
            f"the proxy went from {peak.proxy:.2f} to {now.proxy:.2f}"
        )
