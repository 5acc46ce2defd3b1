"""A whole run: check, start, the stages in order, the summary and the report."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors.cluster import connect, demand
from rayrlhf.actors.recorder import Recorder
from rayrlhf.config import RunConfig, Stage
from rayrlhf.errors import ConfigError, RayrlhfError
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.checks import check_run
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.folder import RunFolder, tracks
from rayrlhf.pipelines.plan import show_plan
from rayrlhf.pipelines.ppo import PPOLoop
from rayrlhf.pipelines.prompts import load_prompt_set
from rayrlhf.pipelines.reward import run_reward
from rayrlhf.pipelines.supervised import run_sft
from rayrlhf.telemetry.console import Console
from rayrlhf.telemetry.memory import MemorySampler
from rayrlhf.telemetry.report import write_report
from rayrlhf.telemetry.summary import write_summary
from rayrlhf.telemetry.wording import wording


def run_stages(config: RunConfig, *, resume: bool, only: Stage | None = None) -> Path:
    """Run the configured stages (or one of them) and return the run's folder; raises one of our errors."""
    console = Console()
    console.note("Checking models, data and rewards.")
    checked = check_run(config, only=only, resume=resume)
    config, report = checked.config, checked.preflight
    for note in checked.notes:
        console.note(note)
    for warning in report.warnings:
        console.warn(warning)
    demand(report)
    folder = RunFolder(config)
    try:
        _open_folder(folder, config, console, resume=resume, only=only)
    except OSError as error:
        raise ConfigError(f"The run's folder {folder.root} cannot be used: {error}.") from error
    show_plan(console, config, checked.plan)
    with MemorySampler() as memory:
        if not ray.is_initialized():
            console.note("Starting Ray on this machine.")
            connect(config)
        obey_termination()
        try:
            summary = _run(config, folder, console, memory, device=report.device, resume=resume)
        except (RayrlhfError, KeyboardInterrupt) as failure:
            _record_failure(folder, failure)
            raise
        finally:
            ray.shutdown()
    folder.root.joinpath("failure.json").unlink(missing_ok=True)
    console.note(f"Report: {write_report(folder.root)}")
    _show_outcome(console, config, summary)
    return folder.root


def obey_termination() -> None:
    """Meet what a scheduler or `ray job stop` sends as Ctrl-C is met: the loop unwinds, the actors end, --resume goes on.

    A shell starts background commands with Ctrl-C ignored; then the interrupt is raised here and now.
    """
    relayed = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    signal.signal(
        signal.SIGTERM,
        (lambda *_: signal.raise_signal(signal.SIGINT)) if relayed else signal.default_int_handler,
    )


def _run(
    config: RunConfig,
    folder: RunFolder,
    console: Console,
    memory: MemorySampler,
    *,
    device: str,
    resume: bool,
) -> dict[str, Any]:
    started = time.monotonic()
    summary = folder.read_summary()
    earlier_seconds = float(summary.get("wall_seconds", 0.0))
    stages: dict[str, Any] = summary.get("stages", {})
    last_steps = {track: -1 for stage in config.stages for track in tracks(config, stage)}
    wandb_run_id: str | None = None
    if resume:
        last_steps, wandb_run_id = _resume_point(config, folder)
    recorder = Recorder(folder.root, config, wandb_run_id=wandb_run_id, last_steps=last_steps, tell=console.warn)
    context = RunContext(
        config=config,
        folder=folder,
        recorder=recorder,
        console=console,
        memory=memory,
        device=device,
        resume=resume,
    )
    try:
        for stage in config.stages:
            if resume and folder.finished(stage) and stage in stages:
                console.note(f"Stage {stage} is finished already.")
                continue
            stages[stage] = asyncio.run(_run_stage(context, stage))
            summary = {
                "run": config.name,
                "seed": config.seed,
                "wall_seconds": earlier_seconds + time.monotonic() - started,
                "peak_memory_bytes": max(int(summary.get("peak_memory_bytes", 0)), memory.peak_bytes),
                "stages": stages,
            }
            write_summary(folder.root, summary)
    finally:
        recorder.close()
    return summary


async def _run_stage(context: RunContext, stage: Stage) -> dict[str, Any]:
    config, folder = context.config, context.folder
    if stage == "sft":
        return await run_sft(context)
    if stage == "reward":
        return await run_reward(context)
    policy_dir = _policy_start(config, folder)
    reward_model_dir = _reward_model(config, folder)
    prompts = load_prompt_set(config, policy_dir=policy_dir)
    loop = PPOLoop(context, prompts, policy_dir=policy_dir, reward_model_dir=reward_model_dir)
    return await loop.run()


def _policy_start(config: RunConfig, folder: RunFolder) -> str:
    if folder.finished("sft"):
        return str(folder.model_dir("sft"))
    if config.model.path is not None:
        return config.model.path
    raise ConfigError(f"Stage ppo starts from {folder.model_dir('sft')}, which is not there: run the sft stage first.")


def _reward_model(config: RunConfig, folder: RunFolder) -> str | None:
    """The first reward model among the rewards; None where nothing learned judges."""
    models = config.ppo.reward_models
    own = str(folder.model_dir("reward_model"))
    if any(model.path is None for model in models) and not folder.finished("reward"):
        raise ConfigError(
            f"ppo.rewards asks for the run's own reward model and {own} is not there: run the reward stage first, give the "
            f"path of one, ppo.rewards=[{{kind: model, path: ...}}], or reward by something else, such as a verifier, "
            f'ppo.rewards=[{{kind: function, target: "package.module:function"}}].'
        )
    return (models[0].path or own) if models else None


def _open_folder(folder: RunFolder, config: RunConfig, console: Console, *, resume: bool, only: Stage | None) -> None:
    if resume:
        if not (folder.root / "config.yaml").exists():
            raise ConfigError(f"There is no run to resume in {folder.root}: start it without --resume.")
        changed = folder.changed_since(config)
        if changed:
            console.warn(f"Changed since the run was started: {', '.join(changed)}.")
    elif only is None:
        aside = folder.set_aside()
        if aside is not None:
            console.note(f"The earlier run of this name is now {aside}.")
    folder.claim()
    if not resume and only is not None:
        folder.clear_stage(only)
    folder.save_config(config)


def _resume_point(config: RunConfig, folder: RunFolder) -> tuple[dict[str, int], str | None]:
    """The last step of each stage that a checkpoint or a finished export holds, and the W&B run to go on with."""
    steps: dict[str, int] = {}
    wandb_run_id: str | None = None
    for stage in config.stages:
        if folder.finished(stage):
            continue
        for track in tracks(config, stage):
            if folder.trained(track).exists():
                continue
            newest, _ = CheckpointStore(folder.checkpoints(track), keep=config.checkpoint.keep).newest()
            steps[track] = newest.step if newest is not None else -1
            if newest is not None:
                wandb_run_id = newest.driver_state.get("wandb_run_id")
    return steps, wandb_run_id


def _record_failure(folder: RunFolder, failure: BaseException) -> None:
    """Leave the first failure where it can be found after the terminal is gone."""
    record = {"time": time.time(), "error": type(failure).__name__, "message": str(failure)}
    folder.root.joinpath("failure.json").write_text(json.dumps(record, indent=2) + "\n")


def _show_outcome(console: Console, config: RunConfig, summary: dict[str, Any]) -> None:
    rows = []
    stages = summary["stages"]
    if "sft" in stages:
        rows.append(["sft", f"held-out loss {stages['sft']['loss']:.3f}", f"{stages['sft']['wall_seconds']:.0f} s"])
    if "reward" in stages:
        reward = stages["reward"]
        rows.append(
            ["reward", f"held-out accuracy {reward['heldout_accuracy']:.3f}", f"{reward['wall_seconds']:.0f} s"]
        )
    if "ppo" in stages:
        ppo = stages["ppo"]
        right_or_wrong = ppo["pass_rate_after"] is not None
        words = wording(config.model_dump(mode="json"), sft="sft" in stages, right_or_wrong=right_or_wrong)
        if right_or_wrong:
            told = f"right by {words.the_judge} {ppo['pass_rate_before']:.1%} -> {ppo['pass_rate_after']:.1%}"
        else:
            told = f"score by {words.the_judge} {ppo['score_before']:.2f} -> {ppo['score_after']:.2f}"
        if ppo["gold_before"] is not None and (ppo["gold_before"], ppo["gold_after"]) != (
            ppo["pass_rate_before"],
            ppo["pass_rate_after"],
        ):
            told += f", gold {ppo['gold_before']:.3f} -> {ppo['gold_after']:.3f} (best {ppo['gold_best']:.3f})"
        told += f", KL {ppo['kl_to_reference']:.2f} nats"
        rows.append([f"ppo: {words.algorithm}", told, f"{ppo['wall_seconds']:.0f} s"])
    console.table("outcome", ["stage", "result", "time"], rows)
