"""Held-out prompts, answered by the current policy and scored: what the guard, the summary and the report go by."""

from collections.abc import Sequence

from rayrlhf.actors.calls import repeated_when_lost, together
from rayrlhf.actors.rollout import RolloutPool
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.errors import ScoringError
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.prompts import fixed_groups
from rayrlhf.types import Prompt

_GROUP = 8
"""Held-out prompts that are drawn and scored together."""


class Evaluator:
    """Asks the pools for answers to the held-out prompts."""

    def __init__(
        self, context: RunContext, heldout: Sequence[Prompt], *, rollout: RolloutPool, scoring: ScoringPool
    ) -> None:
        self._context = context
        self._settings = context.config.ppo
        self._prompts = heldout[: self._settings.evaluate_prompts]
        self._rollout = rollout
        self._scoring = scoring

    @repeated_when_lost
    async def answer(self, purpose: str, step: int) -> tuple[dict[str, float], list[float]]:
        """eval/* metrics of one answer a prompt, and the judge's value of each; the draws are fixed by `purpose`.

        The judge's values are empty where there is no judge, or where an answer has no score: the guard compares
        answers to the same prompts. Version `step` draws them: call it while nothing newer is published.
        """
        groups = fixed_groups(self._context.config.seed, purpose, self._prompts, size=_GROUP)
        parts = await self._rollout.generate(groups)
        scored = await together(*(self._scoring.score([part]) for part in parts))
        missing = [reason for _, info in scored for _, reason in info.missing]
        if len(missing) > self._settings.max_missing * len(self._prompts):
            raise ScoringError(
                f"{len(missing)} of the {len(self._prompts)} held-out responses after {step} updates have no score; the first "
                f"because {missing[0]}."
            )
        metrics, judged = await self._context.recorder.evaluation(purpose, step, [ref for ref, _ in scored])
        return metrics, judged if not missing else []
