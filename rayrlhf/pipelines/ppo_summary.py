"""What summary.json says of a PPO stage."""

from collections.abc import Mapping
from typing import Any

from rayrlhf.experience.ledger import Ledger
from rayrlhf.types import PolicyVersion


def ppo_summary(
    *,
    before: Mapping[str, float],
    after: Mapping[str, float],
    ledger: Ledger,
    version: PolicyVersion,
    gold_best: float | None,
    mismatch_p99: float,
    restarts: Mapping[str, int],
    tokens: int,
    updates: int,
    wall_seconds: float,
) -> dict[str, Any]:
    """The stage's facts; `before` and `after` are eval/* of the policy it began with and of the one it exported."""
    return {
        "wall_seconds": wall_seconds,
        "tokens": tokens,
        "updates": updates,
        "score_before": before["eval/score"],
        "score_after": after["eval/score"],
        "pass_rate_before": before.get("eval/pass_rate"),
        "pass_rate_after": after.get("eval/pass_rate"),
        "gold_before": before.get("eval/gold"),
        "gold_after": after.get("eval/gold"),
        "gold_best": gold_best,
        "kl_to_reference": after["eval/kl"],
        "mismatch_p99": mismatch_p99,
        "samples_trained": ledger.trained,
        "samples_lost": ledger.lost,
        "samples_duplicated": ledger.duplicated,
        "samples_dropped": ledger.dropped,
        "restarts": dict(restarts),
        "policy_versions": version,
    }
