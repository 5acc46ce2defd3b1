"""Scoring workers: reward model and reference policy behind Ray."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import ray

from rayrlhf.actors import placement
from rayrlhf.actors.calls import ActorLostError, resolve
from rayrlhf.actors.cores import run_on
from rayrlhf.actors.placement import actor_options
from rayrlhf.actors.pool import ReplicaPool, StalledError
from rayrlhf.actors.replica import Replica, State
from rayrlhf.actors.rollout import Drawn
from rayrlhf.actors.stacks import answer_for_stacks, stacks_file
from rayrlhf.config import RolloutConfig, RunConfig
from rayrlhf.errors import DeadlineError
from rayrlhf.reward.build import build_scorer, build_terms
from rayrlhf.reward.merging import MergingBatcher
from rayrlhf.rollout.chat import ChatEngine
from rayrlhf.rollout.environment import engine_environment
from rayrlhf.telemetry.events import Event
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory

_MERGED = 1024
"""Groups of one pass over the scorer, at most, but for a larger request."""
_PULSE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class ScoringInfo:
    """What the driver needs to know of a scored chunk."""

    sample_ids: tuple[SampleId, ...]
    """Of the scored samples."""
    missing: tuple[tuple[SampleId, str], ...]
    """Samples without a score, and why."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The reward models in force, where they are not the configuration's any more."""

    version: int = 0
    """How many times they were replaced."""
    replaced: dict[str, str] = field(default_factory=dict)
    """Directories in place of model terms' own, by their names."""


class ScoringWorker:
    """One scorer in one process."""

    def __init__(
        self, config: RunConfig, reward_model_dir: str | None, reference_dir: str, device: str, number: int
    ) -> None:
        self._number = number
        self._cores = config.scoring.cores
        answer_for_stacks(config, "scoring", number)
        models: dict[str, Any] = {
            "reward_model_dir": reward_model_dir,
            "reference_dir": reference_dir,
            "device": device,
            # Terms are built anew when a reward model is replaced; the process holds one engine to its end.
            "engine": cache(
                partial(
                    ChatEngine,
                    process=_engine_process(config),
                    device=device,
                    # Without staleness a run is repeated bit for bit, whichever groups come to be scored together.
                    repeatable=config.ppo.max_staleness == 0,
                )
            ),
        }
        self._make = partial(build_scorer, config, **models)
        self._make_terms = partial(build_terms, config, **models)

    def __repr__(self) -> str:
        """What Ray puts before each line that the process logs."""
        return f"scoring-{self._number}"

    def where(self) -> tuple[str, int]:
        """Its node and process, as soon as Ray has placed it."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def pulse(self) -> int:
        """Passes over the scorer so far: an answer says that the process lives."""
        return self._batcher.batches

    def ready(self) -> None:
        """Load the models: a call can tell why it failed, where a constructor would only leave a dead process."""
        run_on(self._cores, key="scoring.cores")
        self._scorer = self._make()
        self._batcher = MergingBatcher(self._scorer.score_groups, max_items=_MERGED)

    def swap(self, rewards: Rewards) -> None:
        """Load other reward models, and score by them from now on."""
        self._scorer.use(self._make_terms(replaced=rewards.replaced), rewards.version)

    def score(self, sizes: Sequence[int], *chunks: list[Trajectory]) -> tuple[list[ScoredTrajectory], ScoringInfo]:
        """Score groups of these sizes, but what cannot be scored, in order; together with what others ask meanwhile."""
        started = time.perf_counter()
        rest = chain.from_iterable(chunks)
        groups = [list(islice(rest, size)) for size in sizes]
        answers = [answer for group in self._batcher.submit(groups) for answer in group]
        scored = [answer for answer in answers if isinstance(answer, ScoredTrajectory)]
        return scored, ScoringInfo(
            sample_ids=tuple(item.trajectory.sample_id for item in scored),
            missing=tuple(answer for answer in answers if not isinstance(answer, ScoredTrajectory)),
            seconds=time.perf_counter() - started,
        )


def scoring_workers(
    config: RunConfig, *, reward_model_dir: str | None, reference_dir: str, device: str
) -> Callable[[int], Any]:
    """Starts the worker of a number, as Ray finds a place for it."""
    holds_engine = any(judge.path is not None for judge in config.ppo.judges)
    env = engine_environment(_engine_process(config), device=device) if holds_engine else {}
    options = actor_options(config.scoring, device=device, env=env) | {
        "max_concurrency": config.scoring.max_pending + 2
    }

    def spawn(number: int) -> Any:
        arguments = (config, reward_model_dir, reference_dir, device, number)
        return placement.spawn(ScoringWorker, options, *arguments, name=f"{config.name}/scoring-{number}")

    return spawn


def _engine_process(config: RunConfig) -> RolloutConfig:
    """What an engine is to know of a scoring worker's process."""
    return RolloutConfig(threads=config.scoring.compute_threads, dtype=config.scoring.dtype)


class ScoringPool:
    """The scoring workers as one."""

    def __init__(
        self,
        config: RunConfig,
        *,
        spawn: Callable[[int], Any],
        tell: Callable[[Event], None],
        end: Callable[[Any], None] = placement.end,
    ) -> None:
        self._config = config.scoring
        self.rewards = Rewards()
        self.pool = ReplicaPool(
            "scoring",
            config.scoring,
            size=config.scoring.workers,
            spawn=spawn,
            end=end,
            bring_up=self._bring_up,
            serve=self._serve,
            max_pending=config.scoring.max_pending,
            stacks=lambda number: stacks_file(config, "scoring", number),
            tell=tell,
        )

    async def room(self) -> None:
        """Wait until a worker would take another request at once."""
        await self.pool.room()

    async def score(self, drawn: Sequence[Drawn]) -> tuple[Any, ScoringInfo]:
        """Score what was drawn: a reference to its scored form, with what it is."""
        sizes = [group.samples for part in drawn for group in part.groups]
        ref, info = await self.pool.call("score", sizes, *(part.ref for part in drawn))
        return ref, info

    async def swap(self, rewards: Rewards) -> None:
        """Score by other reward models; one worker after the other loads them. Call it while nothing is to be scored."""
        self.rewards = rewards
        for replica in self.pool.serving:
            try:
                await self._load(replica)
            except ActorLostError as loss:
                replica.lose(loss)  # Its replacement will have loaded them.

    async def _bring_up(self, replica: Replica) -> None:
        if self.rewards.version:
            await self._load(replica)

    async def _load(self, replica: Replica) -> None:
        what = f"scoring worker {replica.number} to load {', '.join(self.rewards.replaced.values())}"
        ref = replica.handle.swap.remote(self.rewards)
        await resolve(ref, what=what, timeout=self._config.call_timeout, unless=replica.loss)

    async def _serve(self, replica: Replica) -> None:
        """Feel its pulse until it has drained."""
        while replica.state is State.SERVING or replica.pending:
            what = self.pool.name(replica, "pulse")
            try:
                await resolve(replica.handle.pulse.remote(), what=what, timeout=self._config.stall_timeout)
            except DeadlineError as silence:
                raise StalledError(f"{silence} Its process does not answer.") from silence
            await asyncio.sleep(_PULSE_SECONDS)
