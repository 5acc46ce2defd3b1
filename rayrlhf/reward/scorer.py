"""The scorer of one process: every term of the reward, and the reference policy, over trajectories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rayrlhf.data.batching import collate, plan_by_unit
from rayrlhf.data.schema import PromptRow
from rayrlhf.data.tokenizer import ids_as_text, prompt_as_text, response_as_text
from rayrlhf.errors import ModelError
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.forward import policy_forward
from rayrlhf.models.load import load_policy
from rayrlhf.reward.terms import ScoreRequest, Term, TermScore
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory

Gold = Callable[[str, str], float]
"""A task's known true reward of (prompt, response)."""


@dataclass(frozen=True, kw_only=True)
class WeightedTerm:
    """A term, what it is called, and its part in the sum: weight x (value - mean) / std."""

    name: str
    term: Term
    weight: float
    mean: float = 0.0
    std: float = 1.0


Scores = Sequence[tuple[WeightedTerm, TermScore]]
"""What the terms that score a trajectory answered."""

Missing = tuple[SampleId, str]
"""A trajectory without a score, and why."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What came of some trajectories: those with a score, in order, and why the others have none."""

    trajectories: list[ScoredTrajectory]
    missing: list[Missing]


class TrajectoryScorer:
    """Scores trajectories as the engine drew them: where a term reads the policy's tokens, nothing is tokenized again."""

    def __init__(
        self,
        terms: Sequence[WeightedTerm],
        *,
        tokenizer: PreTrainedTokenizerBase,
        reference_dir: str,
        prompt_of: Callable[[SampleId], PromptRow | None],
        micro_batch_tokens: int,
        temperature: float,
        device: str,
        dtype: str,
        gold: Gold | None,
        judge: Term | None = None,
        by_group: bool = False,
    ) -> None:
        """`by_group` computes each group by itself, for runs that are to be repeated exactly."""
        self._terms = terms
        self._version = 0
        self._tokenizer = tokenizer
        self._prompt_of = prompt_of
        self._device = resolve_device("cuda" if device == "cuda" else "cpu")
        self._reference = load_policy(reference_dir, dtype=resolve_dtype(dtype, self._device)).to(self._device)
        self._micro_batch_tokens = micro_batch_tokens
        self._temperature = temperature
        self._gold = gold
        self._judge = judge
        self._by_group = by_group

    def use(self, terms: Sequence[WeightedTerm], version: int) -> None:
        """Score by other terms from now on, and say so in every score."""
        self._terms, self._version = terms, version

    def score(self, trajectories: Sequence[Trajectory]) -> Scored:
        """The score of every term that its prompt names, and the reference's log-probs; a trajectory that any of them cannot
        score is missing."""
        answers = self.score_each(trajectories)
        return Scored(
            trajectories=[answer for answer in answers if isinstance(answer, ScoredTrajectory)],
            missing=[answer for answer in answers if not isinstance(answer, ScoredTrajectory)],
        )

    def score_groups(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[ScoredTrajectory | Missing]]:
        """An answer in the place of each trajectory; with `by_group`, to the last bit the same whatever groups it comes with."""
        flat = [trajectory for group in groups for trajectory in group]
        places = [number for number, group in enumerate(groups) for _ in group]
        answers = iter(self.score_each(flat, places=places))
        return [[next(answers) for _ in group] for group in groups]

    def score_each(
        self, trajectories: Sequence[Trajectory], *, places: Sequence[int] | None = None
    ) -> list[ScoredTrajectory | Missing]:
        """`score` with an answer in the place of each trajectory; `places` tells which of them were asked for together.

        With `by_group` those of one place share no forward pass with others: rounding depends on what is computed together.
        """
        if not trajectories:
            return []
        places = [0] * len(trajectories) if places is None else places
        units = places if self._by_group else [0] * len(trajectories)
        rows = [self._prompt_of(trajectory.sample_id) for trajectory in trajectories]
        groups = _group_numbers(trajectories, places)
        requests = list(map(self._request, trajectories, rows, groups, units))
        scores = self._scores(requests, rows)
        reasons = [next((score.reason for _, score in own if score.value is None), None) for own in scores]
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        ref_logprobs = self._ref_logprobs([trajectories[i] for i in kept], [units[i] for i in kept])
        judged = self._judged([requests[i] for i in kept], [trajectories[i] for i in kept])
        answers: list[ScoredTrajectory | Missing] = [
            (trajectory.sample_id, reason or "") for trajectory, reason in zip(trajectories, reasons, strict=True)
        ]
        for i, logprobs, judge in zip(kept, ref_logprobs, judged, strict=True):
            answers[i] = self._assemble(trajectories[i], requests[i], scores[i], logprobs, judge)
        return answers

    def _scores(self, requests: Sequence[ScoreRequest], rows: Sequence[PromptRow | None]) -> list[Scores]:
        """Each request's scores; a term is asked only for responses to prompts that name it."""
        found: list[list[tuple[WeightedTerm, TermScore]]] = [[] for _ in requests]
        for own in self._terms:
            asked = [i for i, row in enumerate(rows) if row is None or row.scored_by(own.name)]
            answers = own.term.score([requests[i] for i in asked]) if asked else []
            for i, score in zip(asked, answers, strict=True):
                found[i].append((own, score))
        return list(found)

    def _judged(self, requests: Sequence[ScoreRequest], trajectories: Sequence[Trajectory]) -> Sequence[float | None]:
        """What is trained on is not judged: the judge must stay unknown to the policy, and its time is for evaluations."""
        found: list[float | None] = [None] * len(trajectories)
        asked = [i for i, trajectory in enumerate(trajectories) if not trajectory.sample_id.trained]
        if self._judge is not None and asked:
            for i, score in zip(asked, self._judge.score([requests[i] for i in asked]), strict=True):
                found[i] = score.value
        return found

    def _request(self, trajectory: Trajectory, row: PromptRow | None, group: int, unit: int) -> ScoreRequest:
        prompt_ids, response_ids, finished = trajectory.prompt_ids, trajectory.response_ids, trajectory.finish == "eos"
        return ScoreRequest(
            name=str(trajectory.sample_id),
            prompt=ids_as_text(self._tokenizer, prompt_ids) if row is None else row.prompt,
            response=response_as_text(self._tokenizer, prompt_ids, response_ids, finished=finished),
            token_ids=np.concatenate([prompt_ids, response_ids]),
            finished=finished,
            reference=None if row is None else row.reference,
            group=group,
            unit=unit,
        )

    @torch.no_grad()
    def _ref_logprobs(self, trajectories: Sequence[Trajectory], units: Sequence[int]) -> list[np.ndarray]:
        sequences = [np.concatenate([t.prompt_ids, t.response_ids]) for t in trajectories]
        starts = [len(t.prompt_ids) for t in trajectories]
        found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(trajectories)
        for indices in plan_by_unit([len(s) for s in sequences], units, max_tokens=self._micro_batch_tokens):
            batch = collate(sequences, starts, indices).to(self._device)
            outputs = policy_forward(self._reference, batch, temperature=self._temperature, with_entropy=False)
            for i, row, valid in zip(indices, outputs.logprobs.cpu(), batch.loss_mask.cpu(), strict=True):
                found[i] = row[valid].numpy()
        return found

    def _assemble(
        self,
        trajectory: Trajectory,
        request: ScoreRequest,
        scores: Scores,
        ref_logprobs: np.ndarray,
        judge: float | None,
    ) -> ScoredTrajectory:
        if not np.isfinite(ref_logprobs).all():
            raise ModelError(f"The reference policy gave sample {trajectory.sample_id} log-probs that are not finite.")
        values = [(own, score.value) for own, score in scores if score.value is not None]
        spreads = [score.spread for _, score in scores if score.spread is not None]
        compared = [score.comparisons for _, score in scores if score.comparisons is not None]
        return ScoredTrajectory(
            trajectory=trajectory,
            reward_version=self._version,
            score=sum(own.weight * (value - own.mean) / own.std for own, value in values),
            terms={own.name: value for own, value in values},
            spread=max(spreads) if spreads else None,
            comparisons=reduce(add, compared) if compared else None,
            ref_logprobs=ref_logprobs,
            prompt_text=ids_as_text(self._tokenizer, trajectory.prompt_ids),
            response_text=request.response,
            reference=request.reference,
            judge=judge,
            gold=None if self._gold is None else self._gold(prompt_as_text(request.prompt), request.response),
        )


def _group_numbers(trajectories: Sequence[Trajectory], places: Sequence[int]) -> list[int]:
    """A number for each prompt: a place may hold samples of several prompts, as in evaluations.

    A prompt that is in two places, as where an epoch ends within a step, is two groups, so that no group depends on what
    comes to be scored together.
    """
    numbers: dict[tuple[int, str, int, int], int] = {}
    keys = [(place, *t.sample_id[:3]) for place, t in zip(places, trajectories, strict=True)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
