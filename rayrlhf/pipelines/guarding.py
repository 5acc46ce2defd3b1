"""The guard in the loop: told of every evaluation, it warns, pulls harder to the reference, or ends the stage."""

import shutil
from typing import Any

from rayrlhf.actors.learner import LearnerGroup
from rayrlhf.pipelines.context import RunContext
from rayrlhf.reward.guard import Observation, OveroptimizationGuard


class GuardControl:
    """Acts on what the guard finds; where it may end the stage, the best policy so far is kept on disk."""

    def __init__(self, context: RunContext, learner: LearnerGroup) -> None:
        self._context = context
        self._settings = context.config.ppo.guard
        self._learner = learner
        self._guard = OveroptimizationGuard(self._settings)
        self._best: dict[str, float] = {}
        """eval/* at the judge's peak."""
        self.stopped = False

    async def evaluated(self, step: int, evaluation: dict[str, float], judged: list[float]) -> dict[str, float]:
        """Take in the evaluation after `step` updates and act; the guard's metrics."""
        if self._settings.action == "off" or len(judged) < 2:
            return {}
        finding = self._guard.observe(
            Observation(step=step, kl=evaluation["eval/kl"], proxy=evaluation["eval/score"], judged=tuple(judged))
        )
        if finding.new_peak:
            self._best = evaluation
            if self._settings.action == "stop":
                await self._learner.call("export", *self._best_directories())
        if finding.tripped:
            await self._act(finding.told)
        return finding.metrics

    def restore(self) -> dict[str, float] | None:
        """After a stop: put the best policy where the stage's output goes; its evaluation. None where there was none."""
        if not self.stopped:
            return None
        for kept, name in zip(self._best_directories(), ("policy", "critic"), strict=True):
            source = self._context.folder.root / kept
            if source.exists():
                target = self._context.folder.model_dir(name)
                shutil.rmtree(target, ignore_errors=True)
                source.rename(target)
        return self._best

    def summary(self) -> dict[str, Any]:
        """What the stage's summary says of the guard."""
        return {
            "guard_trips": self._guard.trips,
            "guard_peak_step": self._guard.peak_step,
            "guard_stopped": self.stopped,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"guard": self._guard.state_dict(), "best": self._best, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._guard.load_state_dict(state["guard"])
        self._best, self.stopped = state["best"], state["stopped"]

    async def _act(self, told: str) -> None:
        if self._settings.action == "raise_kl":
            await self._learner.call("scale_kl", self._settings.kl_factor)
            consequence = f"the KL coefficient is multiplied by {self._settings.kl_factor:g}"
        elif self._settings.action == "stop":
            self.stopped = True
            consequence = f"the stage ends with the policy of step {self._guard.peak_step}"
        else:
            consequence = "ppo.guard.action=warn lets it go on"
        self._context.console.warn(f"Over-optimisation: {told}; {consequence}.")

    def _best_directories(self) -> tuple[str, str]:
        return str(self._context.folder.candidate("policy")), str(self._context.folder.candidate("critic"))
