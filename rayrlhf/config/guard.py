"""The guard against over-optimisation."""

from typing import Literal

from pydantic import Field

from rayrlhf.config.base import Node


class GuardConfig(Node):
    """Watches a judge that is never rewarded, on the held-out prompts of every evaluation.

    The judge is the task's gold reward, or another reward model. When it falls below its peak, `action` is taken.
    """

    action: Literal["off", "warn", "raise_kl", "stop"] = "warn"
    """raise_kl multiplies the KL coefficient; stop ends the stage with the policy of the judge's peak."""
    judge: str | None = None
    """Directory of a reward model that is no term of the reward; default: the task's gold reward, where it has one."""
    standard_errors: float = Field(default=3.0, gt=0.0)
    """How far below its peak the judge must be, in standard errors of the paired difference."""
    patience: int = Field(default=2, ge=1)
    """Evaluations in a row that it must be so."""
    kl_factor: float = Field(default=2.0, gt=1.0)
    """raise_kl: what the coefficient is multiplied by, each time."""
