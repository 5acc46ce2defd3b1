"""Scoring workers: reward model and reference policy behind Ray."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rayrlhf.actors.placement import actor_options, spawn
from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.config import RunConfig
from rayrlhf.reward.build import build_scorer
from rayrlhf.reward.merging import MergingBatcher
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory

_MERGED = 4096
"""Trajectories of one pass over the scorer, at most, but for a larger request."""


@dataclass(frozen=True, kw_only=True)
class ScoringInfo:
    """What the driver needs to know of a scored chunk."""

    sample_ids: tuple[SampleId, ...]
    """Of the scored samples."""
    missing: tuple[tuple[SampleId, str], ...]
    """Samples without a score, and why."""
    seconds: float


class ScoringWorker:
    """One scorer in one process."""

    def __init__(self, config: RunConfig, reward_model_dir: str | None, reference_dir: str, device: str) -> None:
        self._make = partial(
            build_scorer, config, reward_model_dir=reward_model_dir, reference_dir=reference_dir, device=device
        )

    def ready(self) -> None:
        """Load the models: a call can tell why it failed, where a constructor would only leave a dead process."""
        self._scorer = self._make()
        self._batcher = MergingBatcher(self._scorer.score_each, max_items=_MERGED)

    def score(self, trajectories: list[Trajectory]) -> tuple[list[ScoredTrajectory], ScoringInfo]:
        """Score the trajectories, in order, but those that cannot be scored; together with what others ask meanwhile."""
        started = time.perf_counter()
        answers = self._batcher.submit(trajectories)
        scored = [answer for answer in answers if isinstance(answer, ScoredTrajectory)]
        return scored, ScoringInfo(
            sample_ids=tuple(item.trajectory.sample_id for item in scored),
            missing=tuple(answer for answer in answers if not isinstance(answer, ScoredTrajectory)),
            seconds=time.perf_counter() - started,
        )


class ScoringPool:
    """The scoring workers as one."""

    def __init__(
        self,
        config: RunConfig,
        *,
        reward_model_dir: str | None,
        reference_dir: str,
        device: str,
        tell: Callable[[str], None],
    ) -> None:
        options = actor_options(config.scoring, device=device) | {"max_concurrency": config.scoring.max_pending + 1}

        self.pool = ReplicaPool(
            role="scoring",
            size=config.scoring.workers,
            spawn=lambda _: spawn(ScoringWorker, options, config, reward_model_dir, reference_dir, device),
            prepare=_nothing_to_catch_up,
            start_timeout=config.scoring.start_timeout,
            call_timeout=config.scoring.call_timeout,
            max_restarts=config.scoring.max_restarts,
            max_pending=config.scoring.max_pending,
            tell=tell,
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
