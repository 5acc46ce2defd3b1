"""A rollout worker: a vLLM engine behind Ray that never stops between steps."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ray

from rayrlhf.actors import placement
from rayrlhf.actors.cores import run_on
from rayrlhf.actors.placement import actor_options
from rayrlhf.actors.stacks import answer_for_stacks
from rayrlhf.config import RunConfig
from rayrlhf.rollout.engine import RolloutEngine
from rayrlhf.rollout.environment import engine_environment
from rayrlhf.rollout.stream import FinishedGroup, Progress, RolloutStream
from rayrlhf.types import Group, PolicyVersion, RolloutRequest, Trajectory, WeightManifest


class RolloutWorker:
    """One engine in one process."""

    def __init__(self, config: RunConfig, model_dir: str, device: str, eos_token_ids: list[int], number: int) -> None:
        self._number = number
        self._cores = config.rollout.cores
        answer_for_stacks(config, "rollout", number)
        make = partial(
            RolloutEngine,
            model_dir,
            sampling=config.sampling,
            rollout=config.rollout,
            max_length=config.model.max_length,
            device=device,
            eos_token_ids=eos_token_ids,
            seed=config.seed + number,
        )
        self._stream = RolloutStream(make, max_running=config.rollout.max_num_seqs, on_update=config.rollout.on_update)

    def __repr__(self) -> str:
        """What Ray puts before each line that the process logs."""
        return f"rollout-{self._number}"

    def where(self) -> tuple[str, int]:
        """Its node and process, as soon as Ray has placed it."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def ready(self) -> None:
        """Make the engine: a call can tell why it failed, where a constructor would only leave a dead process."""
        run_on(self._cores, key="rollout.cores")
        self._stream.start()

    def submit(self, groups: list[Group]) -> None:
        """Take groups into work."""
        self._stream.submit(groups)

    def collect(self, wait: float) -> tuple[list[Trajectory], tuple[list[FinishedGroup], Progress]]:
        """What is finished since the last call, of one stage; waits at most `wait` seconds for something."""
        trajectories, groups, progress = self._stream.collect(wait)
        return trajectories, (groups, progress)

    def probe(self, request: RolloutRequest) -> Trajectory:
        """Draw one sample that belongs to nobody's account."""
        return self._stream.probe(request)

    def withdraw(self) -> list[Group]:
        """Give every unfinished group away."""
        return self._stream.withdraw()

    def apply_weights(self, manifest: WeightManifest, *buckets: np.ndarray) -> PolicyVersion:
        """Bring a published version in force between two decode steps; answers with the version now in force."""
        return self._stream.apply_weights(manifest, list(buckets))


def rollout_workers(
    config: RunConfig, *, model_dir: str, device: str, eos_token_ids: list[int]
) -> Callable[[int], Any]:
    """Starts the worker of a number, as Ray finds a place for it."""
    options = actor_options(config.rollout, device=device, env=engine_environment(config.rollout, device=device))
    options["max_concurrency"] = 8

    def spawn(number: int) -> Any:
        arguments = (config, model_dir, device, eos_token_ids, number)
        return placement.spawn(RolloutWorker, options, *arguments, name=f"{config.name}/rollout-{number}")

    return spawn
