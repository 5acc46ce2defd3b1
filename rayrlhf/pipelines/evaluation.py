"""Held-out prompts, answered by the current policy and scored: what the guard, the summary and the report go by."""

from typing import Any

from rayrlhf.actors.calls import repeated_when_lost, together
from rayrlhf.actors.rollout import RolloutPool
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.errors import ScoringError
from rayrlhf.pipelines.context import RunContext
from rayrlhf.types import Prompt, RolloutRequest, SampleId


def sample_request(seed: int, sample_id: SampleId, prompt: Prompt) -> RolloutRequest:
    """What a worker needs to draw a sample; the run's seed and the sample's name decide the draw."""
    return RolloutRequest(sample_id=sample_id, prompt_ids=prompt.token_ids, seed=derive_seed(seed, *sample_id))


def fixed_requests(seed: int, purpose: str, prompts: list[Prompt]) -> list[RolloutRequest]:
    """One request a prompt, with the same seeds whenever it is asked for that purpose."""
    return [sample_request(seed, SampleId(purpose, 0, prompt.prompt_id, 0), prompt) for prompt in prompts]


class Evaluator:
    """Asks the pools for answers to the held-out prompts."""

    def __init__(
        self, context: RunContext, heldout: list[Prompt], *, rollout: RolloutPool, scoring: ScoringPool
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
        answers to the same prompts.
        """
        requests = fixed_requests(self._context.config.seed, purpose, self._prompts)
        parts = await self._rollout.generate(requests, on_loss=no_account)
        scored = await together(*(self._scoring.score(ref) for ref, _ in parts))
        missing = [reason for _, info in scored for _, reason in info.missing]
        if len(missing) > self._settings.max_missing * len(requests):
            raise ScoringError(
                f"{len(missing)} of the {len(requests)} held-out responses after {step} updates have no score; the first "
                f"because {missing[0]}."
            )
        metrics, judged = await self._context.recorder.evaluation(purpose, step, [ref for ref, _ in scored])
        return metrics, judged if not missing else []


def no_account(_: Any) -> None:
    """Samples that are never trained are drawn again without an account of their loss."""
