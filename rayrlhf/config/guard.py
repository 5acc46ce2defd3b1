"""The guard against over-optimisation."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rayrlhf.config.base import Node


class GuardConfig(Node):
    """Watches a judge that is never rewarded, on the held-out prompts of every evaluation.

    The judge is the task's gold reward, or another reward model. When it falls below its peak, `action` is taken.
    """

    action: Literal["off", "warn", "raise_kl", "stop"] = "warn"
    """What a fall does: raise_kl multiplies the KL coefficient; stop ends the stage with the policy of the judge's peak.
    off watches nothing."""
    export: Literal["best", "last"] = "best"
    """The policy that the stage writes at its end. best: of the evaluation where the judge was highest, kept on disk when
    it is reached; without a judge, the last."""
    judge: str | None = None
    """Directory of a reward model that is no term of the reward; default: the task's gold reward, where it has one."""
    standard_errors: float = Field(default=3.0, gt=0.0)
    """How far below its peak the judge must be, in standard errors of the paired difference."""
    patience: int = Field(default=2, ge=1)
    """Evaluations in a row that it must be so."""
    kl_factor: float = Field(default=2.0, gt=1.0)
    """raise_kl: what the coefficient is multiplied by, each time."""

    @field_validator("action", mode="before")
    @classmethod
    def _off_is_a_word(cls, action: Any) -> Any:
        """YAML reads off as false."""
        return "off" if action is False else action

    @model_validator(mode="after")
    def _stop_exports_the_best(self) -> "GuardConfig":
        if self.action == "stop" and self.export == "last":
            raise ValueError("ppo.guard.action=stop ends with the policy of the judge's peak: it needs export=best")
        return self
