"""The settings that each advantage estimator brings along, from its paper."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

_OF_ITS_PAPER: dict[str, dict[str, Any]] = {
    # Ziegler et al. 2019 and its code: whitened advantages, scores brought to one scale, the KL in the reward.
    "gae": {"whiten_advantages": True, "normalize_reward": True, "scale": "none"},
    # REINFORCE++ (Hu et al. 2025): one normalisation over the whole batch takes the place of the critic.
    "reinforce": {"whiten_advantages": True, "normalize_reward": True, "scale": "none"},
    # Ahmadian et al. 2024: the others of the group are the whole baseline.
    "rloo": {"whiten_advantages": False, "normalize_reward": False, "scale": "none"},
    # Shao et al. 2024: the group's mean and deviation, and nothing over the batch.
    "grpo": {"whiten_advantages": False, "normalize_reward": False, "scale": "std"},
}
_PLACEMENT = {"gae": "reward", "reinforce": "reward", "rloo": "loss", "grpo": "loss"}
_ESTIMATOR = {"reward": "k1", "loss": "k3"}
"""k1 has a gradient of zero mean in the loss; k3 is the one of GRPO (Shao et al. 2024, equation 4)."""


def with_defaults_of_the_estimator(ppo: Mapping[str, Any]) -> dict[str, Any]:
    """The section `ppo` as it was written, with what its `advantage` decides filled in where it is absent or null.

    What is filled in is part of the configuration from then on, so that a run's config.yaml shows what was used. A
    section that is malformed is handed on as it is, for the fields to refuse.
    """
    filled = dict(ppo)
    advantage = filled.get("advantage", "gae")
    if not isinstance(advantage, str) or advantage not in _OF_ITS_PAPER:
        return filled
    _fill(filled, _OF_ITS_PAPER[advantage])
    kl = filled.get("kl")
    if isinstance(kl, BaseModel):
        kl = kl.model_dump(exclude_unset=True)
    if kl is None or isinstance(kl, Mapping):
        kl = dict(kl or {})
        _fill(kl, {"placement": _PLACEMENT[advantage]})
        _fill(kl, {"estimator": _ESTIMATOR.get(str(kl["placement"]), "k1")})
        filled["kl"] = kl
    return filled


def _fill(section: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, value in defaults.items():
        if section.get(name) is None:
            section[name] = value
