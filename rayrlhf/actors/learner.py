"""Learner processes: the same calls on every rank, the answer of rank 0."""

import asyncio
import os
from collections.abc import Callable, Collection
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors.calls import ActorLostError, alongside, resolve, together
from rayrlhf.actors.cores import run_on
from rayrlhf.actors.placement import actor_options, end, spawn
from rayrlhf.actors.rollout import PublishedWeights
from rayrlhf.actors.stacks import answer_for_stacks
from rayrlhf.algorithms.mismatch import Mismatch, mismatch_quantiles
from rayrlhf.config import RunConfig
from rayrlhf.errors import DeadlineError, WorkerError
from rayrlhf.experience.spool import read_batch
from rayrlhf.learner.process_group import Ranks, free_address, init_process_group
from rayrlhf.types import SampleId, Trajectory

_PULSE_SECONDS = 2.0

Build = Callable[[RunConfig, Ranks], Any]
"""Makes the plain learner object of one rank; runs inside the learner process."""


class LearnerLostError(ActorLostError):
    """A rank is gone or hangs, and with it what the group held: it must be made anew and brought up to date."""


def lost_too_often(loss: LearnerLostError, config: RunConfig) -> WorkerError:
    """What ends a run whose learner no replacement helps."""
    return WorkerError(
        f"{loss} The learner was lost more than {config.learner.max_restarts} times within "
        f"{config.learner.restart_window:.0f} s (learner.max_restarts, learner.restart_window)."
    )


class LearnerActor:
    """One rank. Ray never restarts it, since a restarted learner would have a fresh optimizer."""

    def __init__(self, config: RunConfig, rank: int) -> None:
        self._config = config
        self._ranks = Ranks(rank=rank, world=config.learner.processes)
        answer_for_stacks(config, "learner", rank)
        self._learner: Any = None
        self._received: list[Any] = []

    def __repr__(self) -> str:
        """What Ray puts before each line that the process logs."""
        return f"learner-{self._ranks.rank}"

    def where(self) -> tuple[str, int]:
        """Its node and process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def pulse(self) -> int | None:
        """How far the call in progress is, where the learner counts that: an answer says that the process lives."""
        return getattr(self._learner, "progress", None)

    def address(self) -> str:
        """Where rank 0 of this node can be reached by the other ranks."""
        return free_address(ray.util.get_node_ip_address())

    def setup(self, build: Build, address: str, device: str) -> None:
        """Join the process group and make the learner."""
        run_on(self._config.learner.cores, key="learner.cores")
        init_process_group(
            self._ranks, init_method=f"tcp://{address}", device=device, timeout=self._config.learner.call_timeout
        )
        self._learner = build(self._config, self._ranks)

    def call(self, method: str, *args: Any) -> Any:
        """Run a method of the learner, or read an attribute of it."""
        member = getattr(self._learner, method)
        return member(*args) if callable(member) else member

    def receive(self, wanted: Collection[SampleId] | None, *chunks: list[Any]) -> None:
        """Hold the trajectories of all chunks, or the scored ones that are wanted of them, for the next call.

        What is lost is missed here, before any rank begins.
        """
        items = [item for chunk in chunks for item in chunk]
        self._received = items if wanted is None else [i for i in items if i.trajectory.sample_id in wanted]

    def receive_batch(self, path: str) -> None:
        """Hold a batch that was written to disk, for the next call."""
        self._received = read_batch(Path(path))

    def update(self, step: int) -> dict[str, float]:
        """One PPO update on the scored trajectories received."""
        scored, self._received = self._received, []
        metrics: dict[str, float] = self._learner.update(step, scored)
        return metrics

    def mismatch(self) -> Mismatch:
        """How far the engine's log-probs of the trajectories received lie from the learner's."""
        trajectories: list[Trajectory] = self._received
        self._received = []
        rollout_logprobs = [trajectory.rollout_logprobs for trajectory in trajectories]
        return mismatch_quantiles(rollout_logprobs, self._learner.logprobs_of(trajectories))

    def publish(self) -> Any:
        """The policy as manifest and buckets, each its own return value, so that the caller owns every one."""
        published = self._learner.publish()
        if published is None:
            return None
        manifest, buckets = published
        digest = blake2b(repr([(s.name, s.checksum) for s in manifest.slots]).encode(), digest_size=16).hexdigest()
        return (manifest, *buckets, (manifest.version, sum(manifest.bucket_bytes), digest))


class LearnerGroup:
    """All ranks of the learner as one."""

    def __init__(self, config: RunConfig, *, device: str, name: str = "learner") -> None:
        """`name` is this group's alone among those of the run; its actors have it with their rank."""
        self._config = config
        self._device = device
        self.places: list[tuple[str, int]] = []
        """Node and process of each rank, once they are there."""
        options = actor_options(config.learner, device=device) | {"concurrency_groups": {"pulse": 1}}
        self._actors = [
            spawn(LearnerActor, options, config, rank, name=f"{config.name}/{name}-{rank}")
            for rank in range(config.learner.processes)
        ]

    @property
    def first_place(self) -> dict[str, Any]:
        """Node and process of rank 0, as far as they are known."""
        node, pid = self.places[0] if self.places else (None, None)
        return {"node": node, "pid": pid}

    async def start(self, build: Build) -> None:
        """Make the learner on every rank; returns when all are ready."""
        timeout = self._config.learner.start_timeout
        try:
            address = await resolve(self._actors[0].address.remote(), what="learner rank 0 to start", timeout=timeout)
        except ActorLostError as loss:
            raise LearnerLostError(str(loss)) from loss
        self.places = await self._all("where", timeout=timeout)
        await self._all("setup", build, address, self._device, timeout=timeout)

    async def call(self, method: str, *args: Any) -> Any:
        """Run `method` on every rank; rank 0's answer."""
        return (await self._all("call", method, *args))[0]

    async def receive(self, wanted: Collection[SampleId], chunks: list[Any]) -> None:
        """Bring every rank what the next update trains on; LostObjectError leaves the learner as it was."""
        await self._all("receive", set(wanted), *chunks)

    async def receive_batch(self, path: Path) -> None:
        """Bring every rank a batch that was written to disk."""
        await self._all("receive_batch", str(path))

    async def update(self, step: int) -> dict[str, float]:
        """One PPO update on what was received; its metrics."""
        metrics: dict[str, float] = (await self._all("update", step))[0]
        return metrics

    async def mismatch(self, chunks: list[Any]) -> Mismatch:
        """Engine against learner on the trajectories behind the references."""
        await self._all("receive", None, *chunks)
        mismatch: Mismatch = (await self._all("mismatch"))[0]
        return mismatch

    async def publish(self, bucket_count: int) -> PublishedWeights:
        """Publish the current policy: references that outlive the learner's process."""
        refs = self._actors[0].publish.options(num_returns=bucket_count + 2).remote()
        others = [actor.publish.remote() for actor in self._actors[1:]]
        timeout = self._config.learner.call_timeout
        (version, total_bytes, digest), *_ = await self._gather([refs[-1], *others], "publish", timeout)
        return PublishedWeights(
            version=version, total_bytes=total_bytes, digest=digest, manifest=refs[0], buckets=tuple(refs[1:-1])
        )

    def stop(self) -> None:
        """End every rank's process."""
        for actor in self._actors:
            end(actor)

    async def _all(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        refs = [getattr(actor, method).remote(*args) for actor in self._actors]
        name = args[0] if method == "call" else method
        return await self._gather(refs, str(name), timeout or self._config.learner.call_timeout)

    async def _gather(self, refs: list[Any], name: str, timeout: float) -> list[Any]:
        calls = (resolve(ref, what=f"learner rank {rank} ({name})", timeout=timeout) for rank, ref in enumerate(refs))
        watches = (self._watch(rank, name) for rank in range(len(self._actors)))
        try:
            return await alongside(together(*calls), *watches)
        except ActorLostError as loss:
            raise LearnerLostError(str(loss)) from loss

    async def _watch(self, rank: int, name: str) -> None:
        """Feel the pulse of a rank during a call; ActorLostError where it does not answer or comes no further."""
        limit = self._config.learner.stall_timeout
        moved_at, moved = asyncio.get_running_loop().time(), -1
        while True:
            await asyncio.sleep(_PULSE_SECONDS)
            ref = self._actors[rank].pulse.options(concurrency_group="pulse").remote()
            try:
                progress = await resolve(ref, what=f"the pulse of learner rank {rank}", timeout=limit)
            except DeadlineError as silence:
                raise ActorLostError(f"{silence} Its process does not answer.") from silence
            now = asyncio.get_running_loop().time()
            if progress is None or progress != moved or name != "update":
                moved_at, moved = now, progress
            elif now - moved_at > limit:
                raise ActorLostError(
                    f"Learner rank {rank} ({name}) makes no progress: nothing for {now - moved_at:.0f} s."
                )
