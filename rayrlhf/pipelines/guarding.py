"""The guard in the loop: told of every evaluation, it keeps the best policy, and warns, pulls harder, or ends the stage."""

from collections.abc import Awaitable, Callable
from typing import Any

from rayrlhf.pipelines.best_policy import BestPolicies
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.trainer import Trainer
from rayrlhf.reward.guard import Observation, OveroptimizationGuard
from rayrlhf.telemetry.events import Event

Confirm = Callable[[int], Awaitable[dict[str, float]]]
"""eval/* of other answers by the policy of this step, which no choice has seen."""


class GuardControl:
    """Acts on what the guard finds. The policy of the judge's peak is kept on disk, and is what the stage exports."""

    def __init__(self, context: RunContext, learner: Trainer, *, confirm: Confirm) -> None:
        self._context = context
        self._settings = context.config.ppo.guard
        self._learner = learner
        self._confirm = confirm
        self._guard = OveroptimizationGuard(self._settings)
        self._kept = BestPolicies(context.folder)
        self._best: dict[str, float] = {}
        """eval/* at the judge's peak."""
        self._confirmed: dict[str, float] = {}
        """eval/* of other answers of the same policy."""
        self._exported_step: int | None = None
        self.stopped = False

    async def evaluated(self, step: int, evaluation: dict[str, float], judged: list[float]) -> dict[str, float]:
        """Take in the evaluation after `step` updates and act; the guard's metrics."""
        if self._settings.action == "off" or len(judged) < 2:
            return {}
        finding = self._guard.observe(
            Observation(step=step, kl=evaluation["eval/kl"], proxy=evaluation["eval/score"], judged=tuple(judged))
        )
        if finding.new_peak:
            self._best, self._confirmed = evaluation, {}
            if self._settings.export == "best":
                self._confirmed = await self._confirm(step)
                await self._learner.call("export", *self._kept.directories(step))
        if finding.tripped:
            await self._act(finding.told)
        return finding.metrics

    async def export(self, last: dict[str, float]) -> dict[str, float]:
        """Write the stage's models, those of the judge's peak where there is one, else the last; eval/* of what was written."""
        peak = self._guard.peak_step
        if self._settings.export == "best" and peak is not None and self._kept.has(peak):
            self._kept.put_in_place(peak)
            self._exported_step = peak
            self._tell(peak)
            return self._best
        policy_dir, critic_dir = (str(self._context.folder.model_dir(name)) for name in ("policy", "critic"))
        await self._learner.call("export", policy_dir, critic_dir)
        return last

    def checkpointed(self) -> None:
        """A checkpoint knows of the best policy now: those it replaced may go."""
        self._kept.prune(self._guard.peak_step)

    def summary(self, *, last_step: int) -> dict[str, Any]:
        """What the stage's summary says of the guard and of what it exported."""
        chosen = self._exported_step is not None
        return {
            "guard_trips": self._guard.trips,
            "guard_peak_step": self._guard.peak_step,
            "guard_stopped": self.stopped,
            "exported_step": self._exported_step if chosen else last_step,
            "score_confirmed": self._confirmed.get("eval/score") if chosen else None,
            "gold_confirmed": self._confirmed.get("eval/gold") if chosen else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "guard": self._guard.state_dict(),
            "best": self._best,
            "confirmed": self._confirmed,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._guard.load_state_dict(state["guard"])
        self._best, self._confirmed, self.stopped = state["best"], state["confirmed"], state["stopped"]
        peak = self._guard.peak_step
        self._kept.prune(peak)
        if self._settings.export == "best" and peak is not None and not self._kept.has(peak):
            self._context.console.warn(
                f"The policy of step {peak}, the best so far by the guard's judge, is no longer in "
                f"{self._kept.directories(peak)[0]}: unless a better one comes, the last policy is exported."
            )

    async def _act(self, told: str) -> None:
        if self._settings.action == "raise_kl":
            await self._learner.change("scale_kl", self._settings.kl_factor)
            consequence = f"the KL coefficient is multiplied by {self._settings.kl_factor:g}"
        elif self._settings.action == "stop":
            self.stopped = True
            consequence = f"the stage ends with the policy of step {self._guard.peak_step}"
        elif self._settings.export == "best":
            consequence = f"training goes on, and the policy of step {self._guard.peak_step} is kept to be exported"
        else:
            consequence = "ppo.guard.action=warn lets it go on"
        self._context.events.tell(Event(kind="guard", text=f"Over-optimisation: {told}; {consequence}."))

    def _tell(self, peak: int) -> None:
        values = self._guard.means()
        last = max(values)
        after = f", and {values[last]:.3f} at the last, {last}" if last != peak else ", the last"
        judge = "gold" if self._settings.judge is None else "the guard's judge"
        self._context.console.note(
            f"Exported the policy of update {peak}, the best on the held-out prompts by {judge}: {values[peak]:.3f} there"
            f"{after}."
        )
