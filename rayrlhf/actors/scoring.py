"""Scoring workers: reward model and reference policy behind Ray."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from rayrlhf.actors.placement import actor_options, spawn
from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.config import RunConfig
from rayrlhf.data.dataset import task_gold
from rayrlhf.reward.scorer import TrajectoryScorer
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory


@dataclass(frozen=True, kw_only=True)
class ScoringInfo:
    """What the driver needs to know of a scored chunk."""

    sample_ids: tuple[SampleId, ...]
    seconds: float


class ScoringWorker:
    """One scorer in one process."""

    def __init__(self, config: RunConfig, reward_model_dir: str, reference_dir: str, device: str) -> None:
        self._make = partial(
            TrajectoryScorer,
            reward_model_dir=reward_model_dir,
            reference_dir=reference_dir,
            micro_batch_tokens=config.scoring.micro_batch_tokens,
            temperature=config.sampling.temperature,
            device=device,
            dtype=config.scoring.dtype,
            combination=config.scoring.ensemble,
            penalty=config.scoring.penalty,
            gold=task_gold(config),
        )

    def ready(self) -> None:
        """Load the models: a call can tell why it failed, where a constructor would only leave a dead process."""
        self._scorer = self._make()

    def score(self, trajectories: list[Trajectory]) -> tuple[list[ScoredTrajectory], ScoringInfo]:
        """Score every trajectory, in order."""
        started = time.perf_counter()
        scored = self._scorer.score(trajectories)
        sample_ids = tuple(t.sample_id for t in trajectories)
        return scored, ScoringInfo(sample_ids=sample_ids, seconds=time.perf_counter() - started)


class ScoringPool:
    """The scoring workers as one."""

    def __init__(self, config: RunConfig, *, reward_model_dir: str, reference_dir: str, device: str) -> None:
        options = actor_options(config.scoring, device=device)

        self.pool = ReplicaPool(
            role="scoring",
            size=config.scoring.workers,
            spawn=lambda _: spawn(ScoringWorker, options, config, reward_model_dir, reference_dir, device),
            prepare=_nothing_to_catch_up,
            start_timeout=config.scoring.start_timeout,
            call_timeout=config.scoring.call_timeout,
            max_restarts=config.scoring.max_restarts,
        )

    async def start(self) -> None:
        """Load the models; returns when all workers can score."""
        await self.pool.start()

    async def score(self, trajectories: Any) -> tuple[Any, ScoringInfo]:
        """Score the chunk behind a reference: a reference to its scored form, with what it is."""
        ref, info = await self.pool.call("score", trajectories)
        return ref, info


async def _nothing_to_catch_up(_: Any) -> None:
    """Frozen models have no version to follow."""
