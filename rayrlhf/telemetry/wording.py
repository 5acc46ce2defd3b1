"""What a run has, by name: its algorithm, what judges its responses, and the policy it started from"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayrlhf.telemetry.metrics import WATCHED

_ALGORITHMS = {"gae": "PPO", "grpo": "GRPO", "rloo": "RLOO", "reinforce": "REINFORCE"}
_METRICS = {**WATCHED, "embedding": "embedding similarity"}

_STRONG_BIAS, _MANY_FLIPS = 0.2, 0.3
"""From where on a reader is told that a judge goes by the order of what it compares."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a run is spoken of."""

    algorithm: str = "PPO"
    """PPO, GRPO, Dr. GRPO, RLOO or REINFORCE."""
    judge: str = "reward model"
    """What scores the responses, such as verifier, reward models, chrF; rewards where several kinds do."""
    start: str = "SFT"
    """The policy before the first update in one word, for titles."""

    @property
    def starting_policy(self) -> str:
        """The policy before the first update, in a sentence."""
        return "the SFT policy" if self.start == "SFT" else "the starting policy"

    @property
    def the_judge(self) -> str:
        """The judge in a sentence: metrics have names, the others an article."""
        return self.judge if self.judge in _METRICS.values() else f"the {self.judge}"

    @property
    def course(self) -> str:
        """From the starting policy to the trained one, for titles."""
        return f"{self.start} → {self.algorithm}"


def wording(config: Mapping[str, Any], *, sft: bool, right_or_wrong: bool) -> Wording:
    """The names for a resolved configuration, as mappings and lists; an empty one is that of the defaults.

    `sft` says whether the run has trained an SFT policy, `right_or_wrong` whether its scores are: then a reward function
    is a verifier.
    """
    ppo = config.get("ppo", {})
    algorithm = _ALGORITHMS.get(ppo.get("advantage", "gae"), "PPO")
    if algorithm == "GRPO" and ppo.get("scale") == "none":
        algorithm = "Dr. GRPO"
    return Wording(
        algorithm=algorithm,
        judge=_judge(config, right_or_wrong=right_or_wrong),
        start="SFT" if sft else "start",
    )


def nothing_to_learn(metrics: Mapping[str, float], advantage: str, *, update: int) -> str | None:
    """What to say of an update in which a group estimator learnt nothing, with what to look at; None of any other."""
    if advantage not in ("grpo", "rloo") or metrics.get("reward/groups_equal") != 1.0:
        return None
    return (
        f"In update {update} the responses to each prompt all scored alike, so that {_ALGORITHMS[advantage]} had nothing to "
        f"learn from them. samples.jsonl shows them: do the rewards tell any answer from another, and are the prompts too "
        f"easy or too hard?"
    )


def position_bias(metrics: Mapping[str, float], *, update: int) -> str | None:
    """What to say of a judge that goes by the order in which it is shown responses; None of any other."""
    bias, flips = (metrics.get(f"reward/position_{name}", 0.0) for name in ("bias", "flips"))
    if abs(bias) < _STRONG_BIAS and flips < _MANY_FLIPS:
        return None
    return (
        f"In update {update} the judge preferred the response shown first with a mean probability of {0.5 + bias:.2f} and "
        f"changed its verdict with the order in {flips:.0%} of the comparisons. Both orders are asked and averaged, but what "
        f"is left is noisy: a more capable judge or clearer principles would tell the responses apart."
    )


def _judge(config: Mapping[str, Any], *, right_or_wrong: bool) -> str:
    terms = config.get("ppo", {}).get("rewards") or [{"kind": "model"}]
    kinds = {term.get("kind") for term in terms}
    if kinds == {"model"}:
        reward = config.get("reward", {})
        several = len(terms) > 1 or reward.get("members", 1) > 1 or reward.get("heads", 1) > 1
        return "reward models" if several else "reward model"
    if len(terms) > 1:
        return "rewards"
    if kinds == {"function"}:
        return "verifier" if right_or_wrong else "reward function"
    if kinds == {"judge"}:
        return "judge"
    return "reward server" if kinds == {"http"} else _METRICS.get(str(terms[0].get("name")), "metric")
