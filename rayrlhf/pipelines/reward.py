"""The reward stage: train the members of the ensemble, put them together, package and judge what came out."""

import asyncio
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors.calls import resolve, together
from rayrlhf.actors.cluster import cluster_nodes, room_for
from rayrlhf.actors.placement import actor_options
from rayrlhf.config import LearnerConfig, RunConfig
from rayrlhf.data.encoded import encoded_preferences
from rayrlhf.errors import ConfigError
from rayrlhf.learner.build import build_reward
from rayrlhf.learner.process_group import Ranks
from rayrlhf.learner.supervised import SupervisedLearner
from rayrlhf.models.members import MEMBERS, model_directories
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.folder import tracks
from rayrlhf.pipelines.supervised import Trained, base_directory, encode_first, train
from rayrlhf.reward.package import package

_FIGURES = ("nll", "ece", "temperature", "balanced_accuracy", "label_auroc", "rating_spearman")
"""Of the held-out preferences, null where they do not give it."""


async def run_reward(context: RunContext) -> dict[str, Any]:
    """Train, package and judge the reward model; the stage's part of the summary."""
    config, folder = context.config, context.folder
    started = time.monotonic()
    bases = await _backbones(context)
    for base_dir in dict.fromkeys(bases):
        await encode_first(context, encoded_preferences, base_dir)
    names = tracks(config, "reward")
    nodes = cluster_nodes()
    fitting = room_for(config.learner, nodes, device=context.device, processes=config.learner.processes)
    groups = max(1, min(fitting, len(names)))
    at_once = asyncio.Semaphore(groups)
    cores = sum(node.resources.get("CPU", 0.0) for node in nodes) / groups
    learner = config.learner.model_copy(update={"threads": threads_of_each(config.learner, cores)})
    sharing = replace(context, config=config.model_copy(update={"learner": learner}))

    async def member(number: int, track: str) -> Trained | None:
        output = folder.trained(track)
        if context.resume and output.exists():
            return None
        async with at_once:
            build = partial(_build, base_dir=bases[number], member=number)
            return await train(sharing, track, config.reward, build, output=output, keep_best=config.reward.keep_best)

    await together(*(member(number, track) for number, track in enumerate(names)))
    building = folder.root / "checkpoints" / "reward_model"
    _assemble([folder.trained(track) for track in names], building)
    judged = await _package(context, building)
    building.rename(folder.model_dir("reward_model"))
    return {
        "wall_seconds": time.monotonic() - started,
        "tokens": context.account.tokens("reward"),
        "heldout_accuracy": judged.get("accuracy"),
        "members": config.reward.members,
        "heads": config.reward.heads,
        **{name: judged.get(name) for name in ("at_chance", *_FIGURES)},
    }


def threads_of_each(learner: LearnerConfig, cores: float) -> int:
    """Threads of a process of a group that has `cores`: more threads than cores would wait for one another."""
    return max(1, min(learner.compute_threads, int(cores) // learner.processes))


def _build(config: RunConfig, ranks: Ranks, *, base_dir: str, member: int) -> SupervisedLearner:
    return build_reward(config, base_dir=base_dir, ranks=ranks, member=member)


async def _backbones(context: RunContext) -> list[str]:
    """What each member starts from."""
    config, folder = context.config, context.folder
    if config.reward.keep_head:
        return model_directories(config.reward.bases[0])
    if config.reward.bases:
        return config.reward.bases
    if folder.finished("sft"):
        return [str(folder.model_dir("sft"))] * config.reward.members
    if config.model.path is None and "sft" in config.stages:
        raise ConfigError(f"The reward stage starts from {folder.model_dir('sft')}, which is not there: run sft first.")
    return [await base_directory(context)] * config.reward.members


def _assemble(models: list[Path], building: Path) -> None:
    """The first member is the plain model; the others lie below it."""
    if models[0].exists():
        shutil.rmtree(building, ignore_errors=True)
        models[0].rename(building)
    for number, model in enumerate(models[1:], start=1):
        target = building / MEMBERS / f"{number:02d}"
        if model.exists():
            target.parent.mkdir(exist_ok=True)
            model.rename(target)


async def _package(context: RunContext, building: Path) -> dict[str, Any]:
    """Score the held-out preferences with what was exported, in a process of its own: what is judged is what is used."""
    config = context.config
    options = actor_options(config.scoring, device=context.device)
    task = ray.remote(package).options(max_retries=0, **options)
    judged: dict[str, Any] = await resolve(
        task.remote(config, str(building), device=context.device),
        what="the reward model to be packaged",
        timeout=config.scoring.call_timeout,
    )
    return judged
