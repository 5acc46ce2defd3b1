"""Rollout workers: vLLM engines behind Ray, always on the version the driver last published."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rayrlhf.actors.calls import LostObjectError, resolve, together
from rayrlhf.actors.placement import actor_options, spawn
from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.config import RunConfig
from rayrlhf.errors import WeightSyncError
from rayrlhf.rollout.engine import RolloutEngine
from rayrlhf.rollout.environment import engine_environment
from rayrlhf.types import PolicyVersion, RolloutRequest, SampleId, Trajectory, WeightManifest


@dataclass(frozen=True, kw_only=True)
class RolloutInfo:
    """What the driver needs to know of a chunk of trajectories it never sees."""

    sample_ids: tuple[SampleId, ...]
    tokens: int
    min_version: PolicyVersion


class RolloutWorker:
    """One engine in one process."""

    def __init__(self, config: RunConfig, model_dir: str, device: str, eos_token_ids: list[int], number: int) -> None:
        self._make = partial(
            RolloutEngine,
            model_dir,
            sampling=config.sampling,
            rollout=config.rollout,
            max_length=config.model.max_length,
            device=device,
            eos_token_ids=eos_token_ids,
            seed=config.seed + number,
        )

    def ready(self) -> None:
        """Make the engine: a call can tell why it failed, where a constructor would only leave a dead process."""
        self._engine = self._make()

    def generate(self, requests: list[RolloutRequest]) -> tuple[list[Trajectory], RolloutInfo]:
        """Draw one response for each request, in order."""
        trajectories = self._engine.generate(requests)
        return trajectories, RolloutInfo(
            sample_ids=tuple(t.sample_id for t in trajectories),
            tokens=sum(len(t.response_ids) for t in trajectories),
            min_version=min(t.min_version for t in trajectories),
        )

    def apply_weights(self, manifest: WeightManifest, *buckets: np.ndarray) -> PolicyVersion:
        """Load a published version; answers with the version now in force."""
        return self._engine.apply_weights(manifest, list(buckets))


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """References to one published version, owned by the driver."""

    version: PolicyVersion
    total_bytes: int
    manifest: Any
    buckets: tuple[Any, ...]


class RolloutPool:
    """The rollout workers as one: splits requests, follows versions, replaces the dead."""

    def __init__(
        self,
        config: RunConfig,
        *,
        model_dir: str,
        device: str,
        eos_token_ids: list[int],
        republish: Callable[[], Awaitable[PublishedWeights]],
        tell: Callable[[str], None],
    ) -> None:
        """`republish` makes the current version's buckets anew, where they are lost before a worker has them."""
        self._published: PublishedWeights | None = None
        self._republish = republish
        self._timeout = config.rollout.call_timeout
        options = actor_options(config.rollout, device=device, env=engine_environment(config.rollout, device=device))
        self.pool = ReplicaPool(
            role="rollout",
            size=config.rollout.workers,
            spawn=lambda number: spawn(RolloutWorker, options, config, model_dir, device, eos_token_ids, number),
            prepare=self._catch_up,
            start_timeout=config.rollout.start_timeout,
            call_timeout=config.rollout.call_timeout,
            max_restarts=config.rollout.max_restarts,
            tell=tell,
        )

    async def start(self) -> None:
        """Start the engines; returns when all can generate."""
        await self.pool.start()

    async def generate(
        self, requests: Sequence[RolloutRequest], *, on_loss: Callable[[list[SampleId]], None]
    ) -> list[tuple[Any, RolloutInfo]]:
        """Draw all requests; a reference to each worker's trajectories, with what they are.

        `on_loss` hears of the samples whose worker died, before they are drawn again under the same names and seeds.
        """

        async def draw(part: list[RolloutRequest]) -> tuple[Any, RolloutInfo]:
            ids = [request.sample_id for request in part]
            return await self.pool.call("generate", part, on_loss=lambda: on_loss(ids))

        share = -(-len(requests) // self.pool.size)
        parts = [list(requests[i : i + share]) for i in range(0, len(requests), share)]
        return await together(*(draw(part) for part in parts))

    async def apply(self, weights: PublishedWeights) -> None:
        """Bring every worker to `weights`; WeightSyncError when one acknowledges another version."""
        self._published = weights
        try:
            acknowledged = await self.pool.broadcast("apply_weights", weights.manifest, *weights.buckets)
        except LostObjectError:
            self._published = weights = await self._republish()
            acknowledged = await self.pool.broadcast("apply_weights", weights.manifest, *weights.buckets)
        wrong = [version for version in acknowledged if version not in (None, weights.version)]
        if wrong:
            raise WeightSyncError(f"A rollout worker acknowledged version {wrong[0]} instead of {weights.version}.")

    async def _catch_up(self, handle: Any) -> None:
        if self._published is None:
            return
        try:
            await self._load(handle, self._published)
        except LostObjectError:
            self._published = await self._republish()
            await self._load(handle, self._published)

    async def _load(self, handle: Any, weights: PublishedWeights) -> None:
        ref = handle.apply_weights.remote(weights.manifest, *weights.buckets)
        await resolve(ref, what=f"a new rollout worker to load version {weights.version}", timeout=self._timeout)
