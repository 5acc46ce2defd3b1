"""What a run will do, in numbers, before it does it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayrlhf.actors.placement import role_gpus
from rayrlhf.config import RoleConfig, RunConfig, Stage, SupervisedConfig
from rayrlhf.telemetry.console import Console, format_bytes
from rayrlhf.telemetry.wording import wording

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The derived quantities of a run."""

    parameters: int
    """Of the policy; a critic and a reward model on its backbone are of nearly the same size."""
    judge_parameters: int = 0
    """Of the models that compare responses in the scoring workers."""
    device: str
    backbones: tuple[int, ...] = ()
    """Parameters of each reward model that the run trains, where reward.base gives it a backbone."""
    rows: Mapping[Stage, int] = field(default_factory=dict)
    """Rows each stage trains on, where they have been read."""

    def learner_bytes(self, config: RunConfig) -> int:
        """Policy, and the critic where there is one, in fp32: weights, gradients and two Adam moments, 16 bytes a parameter;
        or a reward model that is larger."""
        models = 2 if "ppo" in config.stages and config.ppo.uses_critic else 1
        return 16 * max(models * self.parameters, *self.backbones, 0)

    def frozen_bytes(self, config: RunConfig) -> int:
        """The reference, the reward models among the rewards, the guard's, and judges with their key-value caches."""
        own = sum(self.backbones) or config.reward.members * self.parameters
        models = sum(own if model.path is None else self.parameters for model in config.ppo.reward_models)
        others = (1 + (config.ppo.guard.judge is not None)) * self.parameters + self.judge_parameters
        caches = sum(judge.kv_cache_gib for judge in config.ppo.judges if judge.path is not None)
        return (others + models) * self._weight_bytes + int(caches * GIB)

    @property
    def version_bytes(self) -> int:
        """One published version of the policy."""
        return self._weight_bytes * self.parameters

    def object_store_bytes(self, config: RunConfig) -> int:
        """Two versions and the batches in flight: ids and three float32 per token, and the texts."""
        tokens = config.ppo.samples_per_step * config.model.max_length
        return 2 * self.version_bytes + (config.ppo.max_staleness + 2) * tokens * 32

    def engine_bytes(self, config: RunConfig) -> int:
        """Weights and, on CPU, the key-value cache."""
        cache = int(config.rollout.kv_cache_gib * GIB) if self.device == "cpu" else 0
        return self.version_bytes + cache

    @property
    def _weight_bytes(self) -> int:
        return 4 if self.device == "cpu" else 2


def show_plan(console: Console, config: RunConfig, plan: Plan) -> None:
    """Print the one table of a run: roles, resources, batch arithmetic, updates, estimated memory."""
    roles: list[tuple[str, int, RoleConfig, int]] = [
        ("learner", config.learner.processes, config.learner, plan.learner_bytes(config) // config.learner.processes)
    ]
    if "ppo" in config.stages:
        roles.append(("rollout", config.rollout.workers, config.rollout, plan.engine_bytes(config)))
        roles.append(("scoring", config.scoring.workers, config.scoring, plan.frozen_bytes(config)))
    rows = [
        [
            name,
            str(processes),
            f"{role.placed_cpus:g} CPU, {role_gpus(role, device=plan.device):g} GPU, {role.compute_threads} threads",
            format_bytes(memory),
        ]
        for name, processes, role, memory in roles
    ]
    title = (
        f"{config.name}: {plan.parameters / 1e6:.2f} M parameters on {plan.device}, stages {', '.join(config.stages)}"
    )
    console.table(title, ["role", "processes", "each", "models, estimated"], rows)
    console.table("batches", ["stage", "one step", "optimizer updates"], _batch_rows(config, plan.rows))


def _batch_rows(config: RunConfig, counts: Mapping[Stage, int]) -> list[list[str]]:
    rows = []
    stages: list[tuple[Stage, SupervisedConfig, str]] = [
        ("sft", config.sft, "demonstrations"),
        ("reward", config.reward, "pairs"),
    ]
    for stage, settings, what in stages:
        if stage in config.stages:
            rows.append(
                [stage, f"{settings.prompts_per_step} {what}", _supervised_updates(settings, counts.get(stage))]
            )
    if "ppo" in config.stages:
        ppo = config.ppo
        words = wording(config.model_dump(mode="json"), sft="sft" in config.stages, right_or_wrong=False)
        each = ppo.samples_per_step // ppo.minibatches
        rows.append(
            [
                f"ppo: {words.algorithm}",
                f"{ppo.prompts_per_step} prompts x {ppo.samples_per_prompt} samples = {ppo.samples_per_step}",
                f"{_epochs(ppo.epochs)} x {ppo.minibatches} minibatches of {each} = {ppo.epochs * ppo.minibatches} a step, "
                f"{ppo.updates} steps, {ppo.updates * ppo.epochs * ppo.minibatches} in all",
            ]
        )
    return rows


def _supervised_updates(settings: SupervisedConfig, rows: int | None) -> str:
    epochs = _epochs(settings.epochs)
    if rows is None:
        return f"1 a step, {epochs}" + (f", at most {settings.max_steps}" if settings.max_steps else "")
    updates = settings.epochs * -(-rows // settings.prompts_per_step)
    return f"1 a step, {epochs} of {rows:,}: {min(updates, settings.max_steps or updates):,} in all"


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
