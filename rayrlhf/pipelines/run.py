"""A whole run: check, start, the stages in order, the summary and the report."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors.calls import alongside, tell_of_waits
from rayrlhf.actors.cluster import connect, demand, existing_address, keep_paragraphs, obey_termination
from rayrlhf.actors.local_ray import end_services, watch_services
from rayrlhf.actors.memory import ClusterMemory
from rayrlhf.actors.recorder import Recorder
from rayrlhf.actors.stacks import last_log_lines
from rayrlhf.config import RunConfig, Stage
from rayrlhf.errors import ConfigError
from rayrlhf.experience.spool import ExperienceSpool
from rayrlhf.pipelines.checks import check_run
from rayrlhf.pipelines.claim import claimed
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.control import RunControl
from rayrlhf.pipelines.failure import FAILURE_FILE, record_failure
from rayrlhf.pipelines.folder import RunFolder, tracks
from rayrlhf.pipelines.plan import show_plan
from rayrlhf.pipelines.ppo import PPOStage
from rayrlhf.pipelines.prompts import load_prompt_set
from rayrlhf.pipelines.resuming import ResumePlan, demand_begun, plan_resume
from rayrlhf.pipelines.reward import run_reward
from rayrlhf.pipelines.supervised import run_sft
from rayrlhf.report.data import read_run
from rayrlhf.report.watched import watched_findings
from rayrlhf.report.write import write_report
from rayrlhf.telemetry.account import RunAccount
from rayrlhf.telemetry.console import Console
from rayrlhf.telemetry.events import Event, EventLog
from rayrlhf.telemetry.memory import MemorySampler
from rayrlhf.telemetry.summary import write_summary
from rayrlhf.telemetry.wording import wording


def run_stages(
    config: RunConfig, *, resume: bool, only: Stage | None = None, arguments: Sequence[str] | None = None
) -> Path:
    """Run the configured stages and return the run's folder; raises one of our errors.

    `only` is the one stage of the configuration where it was asked for by itself: what other stages made is kept.
    `arguments` are those of the command, for telling how to go on after a failure.
    """
    console = Console()
    folder = RunFolder(config)
    if resume:
        demand_begun(folder)
    with claimed(folder.root):
        plan = plan_resume(folder, config) if resume else _fresh_plan(config)
        if not plan.stages:
            console.note(f"Nothing to do: {', '.join(config.stages)} of {folder.root} finished already.")
            return folder.root
        console.note("Checking models, data and rewards.")
        checked = check_run(config, only=only, resume=resume)
        config, report = checked.config, checked.preflight
        for note in checked.notes:
            console.note(note)
        for warning in report.warnings:
            console.warn(warning)
        demand(report)
        try:
            _open_folder(folder, config, console, plan, resume=resume, only=only)
            folder.save_data_account({stage: asdict(found) for stage, found in checked.data.items()})
        except OSError as error:
            raise ConfigError(f"The run's folder {folder.root} cannot be used: {error}.") from error
        show_plan(console, config, checked.plan)
        summary = _run_and_record(
            config, folder, console, plan, device=report.device, resume=resume, arguments=arguments
        )
        folder.root.joinpath(FAILURE_FILE).unlink(missing_ok=True)
        console.note(f"Report: {write_report(folder.root)}")
        for finding in watched_findings(read_run(folder.root)):
            (console.warn if finding.tone == "bad" else console.note)(f"{finding.headline}. {finding.sentence}")
        _show_outcome(console, config, summary)
    return folder.root


def _fresh_plan(config: RunConfig) -> ResumePlan:
    """Every stage from its first step."""
    last_steps = {track: -1 for stage in config.stages for track in tracks(config, stage)}
    return ResumePlan(stages=list(config.stages), changed=[], last_steps=last_steps)


def _run_and_record(
    config: RunConfig,
    folder: RunFolder,
    console: Console,
    plan: ResumePlan,
    *,
    device: str,
    resume: bool,
    arguments: Sequence[str] | None,
) -> dict[str, Any]:
    """Run what the plan says; the summary. A failure leaves failure.json, the summary and the report so far."""
    memory = MemorySampler()
    account = RunAccount(folder.root, peak_bytes=lambda: memory.peak_bytes)
    run = _Run(config, folder, console, plan, memory=memory, account=account, device=device, resume=resume)
    with memory, account:
        try:
            if not ray.is_initialized():
                console.note("Starting Ray on this machine.")
                connect(config)
            keep_paragraphs(folder.root / "ray.log")
            if existing_address(config) is not None:
                memory.watch(ClusterMemory())
            obey_termination()
            tell_of_waits(lambda text: run.events.tell(Event(kind="wait", text=text)))
            run.go()
        except BaseException as failure:  # recorded whatever it is, an interrupt too, and raised again
            progress = run.position()
            told = record_failure(
                folder,
                config,
                failure,
                stage=progress[0],
                step=progress[1],
                arguments=arguments,
                worker=_lost_worker(run.events),
            )
            with contextlib.suppress(Exception):  # the first failure is the one to tell
                write_summary(folder.root, run.summary())
                write_report(folder.root)
            if told is failure:
                raise
            raise told from failure
        finally:
            tell_of_waits(None)
            memory.watch(int)  # nobody asks a cluster that is left
            end_services()
    summary = run.summary()
    write_summary(folder.root, summary)
    return summary


def _lost_worker(events: EventLog) -> dict[str, Any] | None:
    """The last process that was lost: who it was, where, and what it said last."""
    death = next((event for event in reversed(events.newest) if event.kind == "death"), None)
    if death is None:
        return None
    facts = {key: getattr(death, key) for key in ("role", "number", "node", "pid", "time", "text")}
    return facts | {"log": last_log_lines(death.pid)}


class _Run:
    """The stages that are left to do, one after the other, and the run's facts so far."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        console: Console,
        plan: ResumePlan,
        *,
        memory: MemorySampler,
        account: RunAccount,
        device: str,
        resume: bool,
    ) -> None:
        self._config = config
        self._folder = folder
        self._console = console
        self._plan = plan
        self._memory = memory
        self._account = account
        self._device = device
        self._resume = resume
        earlier: dict[str, Any] = folder.read_summary().get("stages", {})
        self._stages = {stage: facts for stage, facts in earlier.items() if resume or stage not in plan.stages}
        self._stage: Stage | None = None
        self._recorder: Recorder | None = None
        self.events = EventLog(folder.root, listeners=[console.event])

    def go(self) -> None:
        """Run the stages; their facts are written after each."""
        folder = self._folder
        self._recorder = Recorder(
            folder.root,
            self._config,
            wandb_run_id=folder.wandb_run_id(),
            last_steps=self._plan.last_steps,
            tell=self._console.warn,
        )
        try:
            if self._recorder.told:
                self._console.note(self._recorder.told)
            with RunControl(folder.root, self._config.name, self.events) as control:
                context = RunContext(
                    config=self._config,
                    folder=folder,
                    recorder=self._recorder,
                    console=self._console,
                    memory=self._memory,
                    account=self._account,
                    events=self.events,
                    control=control,
                    device=self._device,
                    resume=self._resume,
                )
                self._run_stages(context)
        finally:
            self._recorder.close(self.summary())

    def _run_stages(self, context: RunContext) -> None:
        for stage in self._config.stages:
            if stage not in self._plan.stages:
                self._console.note(f"Stage {stage} is finished already.")
                continue
            self._stage = stage
            with self._account.stage(stage):
                facts = asyncio.run(alongside(_run_stage(context, stage), watch_services()))
            self._stages[stage] = facts | {"wall_seconds": self._account.stage_seconds(stage)}
            write_summary(self._folder.root, self.summary())
        self._stage = None

    def position(self) -> tuple[str | None, int | None]:
        """The stage under way and the last step of it that was logged."""
        steps = {} if self._recorder is None else self._recorder.last_steps
        return self._stage, max(
            (step for track, step in steps.items() if track.startswith(str(self._stage))), default=None
        )

    def summary(self) -> dict[str, Any]:
        """The run's facts so far; `stages` holds those that are finished."""
        return {
            "run": self._config.name,
            "seed": self._config.seed,
            "wall_seconds": self._account.wall_seconds,
            "peak_memory_bytes": self._account.peak_memory_bytes,
            "starts": self._account.processes,
            "stages": self._stages,
        }


async def _run_stage(context: RunContext, stage: Stage) -> dict[str, Any]:
    config, folder = context.config, context.folder
    if stage == "sft":
        return await run_sft(context)
    if stage == "reward":
        return await run_reward(context)
    policy_dir = _policy_start(config, folder)
    reward_model_dir = _reward_model(config, folder)
    prompts = load_prompt_set(config, policy_dir=policy_dir)
    return await PPOStage(context, prompts, policy_dir=policy_dir, reward_model_dir=reward_model_dir).run()


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


def _open_folder(
    folder: RunFolder, config: RunConfig, console: Console, plan: ResumePlan, *, resume: bool, only: Stage | None
) -> None:
    """Make the folder this run's: from here on its configuration and its W&B run are those of this start."""
    if resume and plan.changed:
        console.warn(f"Changed since the run was started, and used from here on: {', '.join(plan.changed)}.")
    if not resume and only is None:
        aside = folder.set_aside()
        if aside is not None:
            console.note(f"The earlier run of this name is now {aside}.")
    if not plan.spool:
        ExperienceSpool(folder.spool).clear()
    folder.root.mkdir(parents=True, exist_ok=True)
    if not resume and only is not None:
        folder.clear_stage(only)
    folder.save_config(config)
    if not resume or folder.wandb_run_id() is None:
        folder.begin_wandb_run(enabled=config.wandb.mode != "disabled")


def _show_outcome(console: Console, config: RunConfig, summary: dict[str, Any]) -> None:
    rows = []
    stages = summary["stages"]
    if "sft" in stages:
        rows.append(["sft", f"held-out loss {stages['sft']['loss']:.3f}", f"{stages['sft']['wall_seconds']:.0f} s"])
    if "reward" in stages:
        reward = stages["reward"]
        rows.append(["reward", _of_reward_model(reward), f"{reward['wall_seconds']:.0f} s"])
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
        told += f", KL {ppo['kl_to_reference']:z.2f} nats"
        rows.append([f"ppo: {words.algorithm}", told, f"{ppo['wall_seconds']:.0f} s"])
    console.table("outcome", ["stage", "result", "time"], rows)


def _of_reward_model(facts: dict[str, Any]) -> str:
    if facts["heldout_accuracy"] is not None:
        told = f"held-out accuracy {facts['heldout_accuracy']:.3f}"
        return f"{told}: NO BETTER THAN CHANCE" if facts["at_chance"] else told
    if facts["label_auroc"] is not None:
        return f"held-out AUROC of labels {facts['label_auroc']:.3f}"
    if facts["rating_spearman"] is not None:
        return f"held-out rank correlation with ratings {facts['rating_spearman']:.3f}"
    return "held-out part without pairs, labels or ratings"
