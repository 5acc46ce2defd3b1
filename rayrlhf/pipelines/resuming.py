"""What `--resume` goes on with, and which changed keys it uses: whatever it does not use, it refuses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from rayrlhf.config import RunConfig, Stage
from rayrlhf.errors import CheckpointError, ConfigError
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.folder import RunFolder, flatten, tracks
from rayrlhf.pipelines.saving import resume_point

FIXED = ("seed", "model", "data", "sampling")
"""Sections that are the run's identity: never changed."""

USED = (
    *("name", "output_dir", "stages", "device"),
    *("rollout", "scoring", "learner", "parity", "checkpoint", "cluster", "wandb.mode"),
)
"""Sections that say how the rest of the run is carried out: used from the resume on."""

KEPT_BY_WANDB = ("wandb",)
"""Part of the W&B run itself: changed only while there is none."""

_SUPERVISED = ("epochs", "max_steps", "micro_batch_tokens", "evaluate_every", "optim")
USED_BY_STAGE: Mapping[Stage, tuple[str, ...]] = {
    "sft": tuple(f"sft.{key}" for key in _SUPERVISED),
    "reward": tuple(f"reward.{key}" for key in _SUPERVISED),
    "ppo": (
        *("ppo.updates", "ppo.samples_per_prompt", "ppo.micro_batch_tokens", "ppo.max_staleness"),
        *("ppo.old_logprobs", "ppo.importance_cap", "ppo.importance_band", "ppo.sequence_band"),
        *("ppo.gamma", "ppo.lam", "ppo.whiten_advantages", "ppo.uncertainty_weight", "ppo.scale"),
        *(
            "ppo.clip_low",
            "ppo.clip_high",
            "ppo.dual_clip",
            "ppo.value_clip",
            "ppo.entropy_coef",
            "ppo.target_kl",
            "ppo.loss_aggregation",
        ),
        *("ppo.critic_warmup_updates", "ppo.kl", "ppo.max_missing", "ppo.reward_clip", "ppo.normalize_reward"),
        *("ppo.missing_eos_penalty", "ppo.truncation", "ppo.optim", "ppo.critic_optim", "ppo.evaluate_every"),
        *("ppo.guard.export", "ppo.guard.standard_errors", "ppo.guard.patience", "ppo.guard.kl_factor"),
    ),
}
"""Keys of a stage under way that are used from its next step on. Every other key of its section decided what its past
steps were (which rows, which reward, which parameters, what the guard compares), and is refused from its first
checkpoint on; so is every key of a finished stage, but more of `ppo.updates`."""

KEEPS_THE_UPDATE = ("name", "output_dir", "stages", "rollout", "scoring", "parity", "checkpoint", "cluster", "wandb")
"""Sections that no update depends on: with any other changed, the updates since a checkpoint are not repeated but made
anew, from the checkpoint on."""

_SERVER_KEYS = ("urls", "batch", "concurrency", "timeout", "timeout_s", "retries")
"""Of a reward term: where its server is and how it, or its function, is asked, not what it answers."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """How far a stage is, as its folder tells."""

    step: int | None
    """Last one that is saved; 0 where only a trained member of an ensemble is there; None before either."""
    finished: bool
    member_trained: bool = False

    @property
    def begun(self) -> bool:
        return self.finished or self.step is not None


@dataclass(frozen=True, kw_only=True)
class ResumePlan:
    """What a resumed run does."""

    stages: list[Stage]
    """Stages with something left to do, in order."""
    changed: list[str]
    """Keys that differ from the folder's configuration; all of them are used."""
    last_steps: dict[str, int]
    """By track of a stage left to do: its last step that is saved, -1 for none."""
    spool: bool = True
    """Whether the updates since the ppo stage's checkpoint are gone on with."""


def demand_begun(folder: RunFolder) -> None:
    """ConfigError where there is no run to go on with."""
    if not (folder.root / "config.yaml").exists():
        raise ConfigError(f"There is no run to resume in {folder.root}: start it without --resume.")


def plan_resume(folder: RunFolder, config: RunConfig) -> ResumePlan:
    """What goes on, from which steps; ConfigError or CheckpointError for what could not be used or gone on with."""
    summary = folder.read_summary()
    old, new = folder.read_config(), flatten(config.model_dump(mode="json"))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    spool = all(_within(key, KEEPS_THE_UPDATE) for key in changed)
    states: dict[Stage, StageState] = {
        stage: stage_state(folder, config, stage, summary, spool=spool) for stage in get_args(Stage)
    }
    has_wandb_run = folder.wandb_run_id() is not None
    going_on = _more_updates(config, summary)
    # A finished stage that is given more updates is under way again.
    judged = states | ({"ppo": replace(states["ppo"], finished=False)} if going_on else {})
    for key in changed:
        reason = why_refused(key, judged, has_wandb_run=has_wandb_run)
        if reason is not None:
            raise ConfigError(
                f"{key} was {old.get(key)!r} when {folder.root} was started and is {new.get(key)!r} now: {reason}; put it "
                f"back, or give a new run another name."
            )
    _check_order(config, states)
    _check_lengths(folder, config, states, old, summary)
    left = [stage for stage in config.stages if not states[stage].finished or (stage == "ppo" and going_on)]
    last_steps = {
        track: -1 if (step := _newest(folder, config, track, spool=spool)) is None else step
        for stage in left
        for track in tracks(config, stage)
        if not folder.trained(track).exists()
    }
    return ResumePlan(stages=left, changed=changed, last_steps=last_steps, spool=spool)


def stage_state(
    folder: RunFolder, config: RunConfig, stage: Stage, summary: Mapping[str, Any], *, spool: bool = True
) -> StageState:
    """How far a stage is: finished with its export and its part of the summary, begun with a checkpoint."""
    names = tracks(config, stage)
    steps = [step for track in names if (step := _newest(folder, config, track, spool=spool)) is not None]
    trained = any(folder.trained(track).exists() for track in names)
    return StageState(
        step=max(steps, default=0 if trained else None),
        finished=folder.finished(stage) and stage in summary.get("stages", {}),
        member_trained=trained,
    )


def why_refused(key: str, states: Mapping[Stage, StageState], *, has_wandb_run: bool) -> str | None:
    """Why a resumed run cannot use another value of `key`; None where it does use it."""
    if _within(key, FIXED):
        return f"a resumed run keeps its {', '.join(FIXED)}"
    if _within(key, USED):
        return None
    if _within(key, KEPT_BY_WANDB):
        return "its W&B run has begun with the former" if has_wandb_run else None
    section: Any = key.split(".")[0]
    if section not in states:
        return "a resumed run would not use it"
    state = states[section]
    if not state.begun:
        return None
    if state.finished:
        return None if key == "ppo.updates" else f"stage {section} is finished and would not use it"
    if state.member_trained:
        return "a member of the ensemble is trained with the former"
    if _within(key, USED_BY_STAGE[section]) or _asks_a_server(key):
        return None
    return f"the {state.step} steps that stage {section} has behind it were made with the former"


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _asks_a_server(key: str) -> bool:
    return key.startswith("ppo.rewards.") and key.rpartition(".")[2] in _SERVER_KEYS


def _newest(folder: RunFolder, config: RunConfig, track: str, *, spool: bool) -> int | None:
    if track == "ppo":
        point = resume_point(folder, config, spool=spool)
        return None if point is None else point.step
    newest, _ = CheckpointStore(folder.checkpoints(track), keep=config.checkpoint.keep).newest()
    return None if newest is None else newest.step


def _check_order(config: RunConfig, states: Mapping[Stage, StageState]) -> None:
    """A stage cannot be put before one that has begun without it."""
    order: tuple[Stage, ...] = get_args(Stage)
    for stage in config.stages:
        later = [other for other in order[order.index(stage) + 1 :] if states[other].begun]
        if not states[stage].finished and later:
            raise ConfigError(
                f"stages={config.stages} would run stage {stage}, and stage {later[0]} has begun without it: leave it out, or "
                f"give a new run another name."
            )


def _check_lengths(
    folder: RunFolder,
    config: RunConfig,
    states: Mapping[Stage, StageState],
    old: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    """No stage under way may be told to end before where it stands; a finished one goes on only from a checkpoint."""
    for stage, settings in (("sft", config.sft), ("reward", config.reward)):
        step = states[stage].step  # type: ignore[index]
        if step is None or states[stage].finished:  # type: ignore[index]
            continue
        if settings.max_steps is not None and settings.max_steps < step:
            raise ConfigError(f"{stage}.max_steps={settings.max_steps} is less than the {step} steps that are done.")
        if settings.epochs < old.get(f"{stage}.epochs", 0):
            raise ConfigError(
                f"{stage}.epochs={settings.epochs} is less than the {old[f'{stage}.epochs']} that stage {stage} was begun "
                f"with: a stage under way can be made longer, and with {stage}.max_steps shorter."
            )
    done = max(states["ppo"].step or 0, _finished_updates(summary) if states["ppo"].finished else 0)
    if "ppo" not in config.stages or not done:
        return
    if config.ppo.updates < done:
        raise ConfigError(
            f"ppo.updates={config.ppo.updates} is less than the {done} updates that are done: raise it, or give a new run "
            f"another name."
        )
    if not (states["ppo"].finished and _more_updates(config, summary)):
        return
    if summary["stages"]["ppo"].get("guard_stopped"):
        raise ConfigError("ppo.updates cannot be raised: the guard has ended stage ppo, which stays as it is.")
    if (states["ppo"].step or 0) < _finished_updates(summary):
        raise CheckpointError(
            f"Stage ppo is finished after {_finished_updates(summary)} updates and cannot be gone on with: "
            f"{folder.checkpoints('ppo')} holds no checkpoint of its end."
        )


def _finished_updates(summary: Mapping[str, Any]) -> int:
    return int(summary.get("stages", {}).get("ppo", {}).get("updates", 0))


def _more_updates(config: RunConfig, summary: Mapping[str, Any]) -> bool:
    return "ppo" in summary.get("stages", {}) and config.ppo.updates > _finished_updates(summary)
