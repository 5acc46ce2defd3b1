"""The supervised stages, sft and reward: the same loop around another loss."""

import time
from typing import Any, Literal

import ray

from rayrlhf.actors.calls import resolve
from rayrlhf.actors.learner import LearnerGroup
from rayrlhf.actors.placement import QUIET
from rayrlhf.config import RunConfig, SupervisedConfig
from rayrlhf.errors import ConfigError
from rayrlhf.learner.base import prepare_base
from rayrlhf.learner.process_group import Ranks
from rayrlhf.learner.supervised import SupervisedLearner, build_supervised
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.folder import STAGE_OUTPUT

SupervisedStage = Literal["sft", "reward"]


async def run_supervised(context: RunContext, stage: SupervisedStage) -> dict[str, Any]:
    """Train one supervised stage, export its model, and return its part of the summary."""
    config, folder = context.config, context.folder
    settings: SupervisedConfig = config.sft if stage == "sft" else config.reward
    started = time.monotonic()
    base_dir = await base_directory(context, stage)

    def build(config: RunConfig, ranks: Ranks) -> SupervisedLearner:
        return build_supervised(config, stage, base_dir=base_dir, ranks=ranks)

    learner = LearnerGroup(config, device=context.device)
    try:
        await learner.start(build)
        store = CheckpointStore(folder.checkpoints(stage), keep=config.checkpoint.keep)
        step = await _restore(context, learner, store)
        total: int = await learner.call("total_steps")
        metrics: dict[str, float] = {}
        with context.console.progress(stage, total) as progress:
            while step < total:
                begun = time.monotonic()
                metrics = await learner.call("train_step")
                step += 1
                if step % settings.evaluate_every == 0 or step == total:
                    metrics |= await learner.call("evaluate")
                metrics["time/step"] = time.monotonic() - begun
                metrics["perf/memory_bytes"] = float(context.memory.current_bytes)
                await context.recorder.log(stage, step, metrics)
                progress.update(step, metrics)
                if step % config.checkpoint.every == 0 and step < total:
                    with store.write(step, {"wandb_run_id": context.recorder.wandb_run_id}) as directory:
                        await learner.call("save", str(directory))
        final: dict[str, float] = await learner.call("evaluate")
        tokens: int = await learner.call("tokens")
        await learner.call("export", str(folder.model_dir(STAGE_OUTPUT[stage])))
    finally:
        learner.stop()
    summary: dict[str, Any] = {"wall_seconds": time.monotonic() - started, "tokens": tokens}
    if stage == "sft":
        summary["loss"] = final["eval/nll"]
    else:
        summary["heldout_accuracy"] = final["eval/accuracy"]
    return summary


async def base_directory(context: RunContext, stage: SupervisedStage) -> str:
    """The model directory a supervised stage starts from; made on the spot for a model with random weights."""
    config, folder = context.config, context.folder
    if stage == "reward" and config.reward.base is not None:
        return config.reward.base
    if stage == "reward" and folder.finished("sft"):
        return str(folder.model_dir("sft"))
    if config.model.path is not None:
        return config.model.path
    if stage == "reward" and "sft" in config.stages:
        raise ConfigError(f"The reward stage starts from {folder.model_dir('sft')}, which is not there: run sft first.")
    directory = folder.model_dir("base")
    if not (directory / "config.json").exists():
        task = ray.remote(prepare_base).options(num_cpus=0, max_retries=0, runtime_env={"env_vars": QUIET})
        await resolve(
            task.remote(config, str(directory)),
            what="the base model to be made",
            timeout=config.learner.start_timeout,
        )
    return str(directory)


async def _restore(context: RunContext, learner: LearnerGroup, store: CheckpointStore) -> int:
    if not context.resume:
        return 0
    checkpoint, skipped = store.newest()
    if skipped:
        context.console.warn(f"Skipped incomplete checkpoints: {', '.join(skipped)}.")
    if checkpoint is None:
        return 0
    await learner.call("load", str(checkpoint.directory))
    context.console.note(f"Resumed from {checkpoint.directory.name}.")
    return checkpoint.step
