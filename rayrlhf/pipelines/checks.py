"""What a run asks for, checked before anything starts: a start, `--dry-run` and `doctor` all ask here."""

import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from rayrlhf.actors.cluster import (
    GIB,
    Preflight,
    cluster_nodes,
    connect,
    existing_address,
    in_a_job,
    inspect,
    local_node,
    with_shares,
)
from rayrlhf.config import FunctionReward, HttpReward, JudgeReward, MetricReward, RunConfig, Stage
from rayrlhf.errors import ConfigError, ResourceError
from rayrlhf.models.checks import check_scorer
from rayrlhf.models.load import check_loadable
from rayrlhf.models.size import count_parameters, count_reward_parameters
from rayrlhf.pipelines.data_checks import DataCheck, FoundData
from rayrlhf.pipelines.folder import RunFolder
from rayrlhf.pipelines.model_checks import check_engine_limits, check_models
from rayrlhf.pipelines.plan import Plan
from rayrlhf.reward.chat_server import key_in
from rayrlhf.reward.importable import check_importable
from rayrlhf.reward.stats import is_ensemble, load_stats

_SERVER_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run that may start, but for what `preflight` finds lacking."""

    config: RunConfig
    """With the CPUs of every role named."""
    plan: Plan
    preflight: Preflight
    notes: list[str]
    """What a user should be told of the models and the data."""
    data: dict[Stage, FoundData]


def check_run(config: RunConfig, *, only: Stage | None = None, resume: bool = False) -> Checked:
    """Everything that is known before the start of the configured stages; with `only`, beside what other stages made.

    Raises ConfigError, DataError, ModelError or ResourceError for the first wrong or impossible thing; what the machine
    or cluster lacks stands in the answer. Joins the cluster where there is one.
    """
    _check_output_dir(config)
    origins = _Origins(config, kept=resume or only is not None)
    notes = check_models(config)
    _check_own_models(config, origins)
    data = DataCheck(config=config, policy_dir=origins.policy() if "ppo" in config.stages else None).run()
    notes += [sentence for found in data.values() for sentence in found.sentences()]
    warnings = _check_rewards(config)
    report, config = _preflight(config)
    report.warnings.extend(warnings)
    plan = replace(_plan(config, device=report.device), rows={stage: found.rows for stage, found in data.items()})
    return Checked(config=config, plan=plan, preflight=report, notes=notes, data=data)


def _check_output_dir(config: RunConfig) -> None:
    """A place that can be written to and that outlives the run."""
    if in_a_job():
        _refuse_what_is_deleted(config)
    try:
        root = Path(config.output_dir).absolute() / config.name
        nearest = next(path for path in (root, *root.parents) if path.exists() or path.is_symlink())
        if nearest.is_dir():
            tempfile.TemporaryDirectory(dir=nearest, prefix=".rayrlhf-").cleanup()
    except (OSError, ValueError) as error:
        raise ConfigError(f"output_dir={config.output_dir} cannot be written to: {error}.") from None
    if not nearest.is_dir():
        raise ConfigError(f"output_dir={config.output_dir} with name={config.name}: {nearest} is no directory.")


def _refuse_what_is_deleted(config: RunConfig) -> None:
    here = Path.cwd()
    unpacked = "working_dir_files" in here.parts
    if not Path(config.output_dir).is_absolute() or (unpacked and Path(config.output_dir).is_relative_to(here)):
        raise ConfigError(
            f"output_dir={config.output_dir} lies in the working directory of this submitted job, which Ray deletes: give an "
            f"absolute path that outlives the job and that every node sees, such as output_dir=/shared/runs."
        )


class _Origins:
    """Where each stage's models come from: the configuration, an earlier stage of this run, or one that was run before."""

    def __init__(self, config: RunConfig, *, kept: bool) -> None:
        """`kept` where the run's folder goes on being used, and is not moved aside."""
        self._config = config
        self._kept = kept
        self._folder = RunFolder(config)

    def own(self, stage: str) -> Path | None:
        """The finished export of a stage that is not run now."""
        found = self._kept and stage not in self._config.stages and self._folder.finished(stage)
        return self._folder.model_dir({"sft": "sft", "reward": "reward_model"}[stage]) if found else None

    def policy(self) -> str | None:
        """Directory of what PPO starts from, None where the run makes it; ConfigError where there is neither."""
        own = self.own("sft")
        if own is not None:
            return str(own)
        if "sft" in self._config.stages or self._config.model.path is not None:
            return self._config.model.path
        raise ConfigError(
            f"PPO starts from {self._folder.model_dir('sft')}, which is not there: run the sft stage first, or give model.path."
        )


def _check_own_models(config: RunConfig, origins: _Origins) -> None:
    """The models that this run made before, or is to make."""
    if "ppo" not in config.stages:
        return
    origins.policy()
    for term in config.ppo.reward_models:
        directory = term.path or origins.own("reward")
        if directory is not None:
            check_scorer(str(directory), max_length=config.model.max_length)
            if len(config.ppo.rewards) > 1 or term.length_correction > 0.0:
                load_stats(directory)
        elif "reward" not in config.stages:
            raise ConfigError(
                f"PPO needs a reward model and {RunFolder(config).model_dir('reward_model')} is not there: run the reward "
                f"stage first, or give the path of one in ppo.rewards=[{{kind: model, path: ...}}]."
            )
    _check_uncertainty(config, origins)


def _check_uncertainty(config: RunConfig, origins: _Origins) -> None:
    """ConfigError where advantages are to be weighted by a spread that no term has."""
    if not config.ppo.uncertainty_weight:
        return
    made = config.reward.members > 1 or config.reward.heads > 1
    for term in config.ppo.reward_models:
        directory = term.path or origins.own("reward")
        if made if directory is None else is_ensemble(directory):
            return
    raise ConfigError(
        f"ppo.uncertainty_weight={config.ppo.uncertainty_weight:g} weighs by how far the members of an ensemble differ, and no "
        f"term of ppo.rewards is one: train one with reward.members or reward.heads, or set it to 0."
    )


def _check_rewards(config: RunConfig) -> list[str]:
    """Every term that is not a reward model; what may be wrong, where it is not certain."""
    warnings = []
    for term in config.ppo.rewards if "ppo" in config.stages else []:
        if isinstance(term, FunctionReward):
            check_importable(term.target, timeout=config.scoring.start_timeout / 5)
        elif isinstance(term, MetricReward) and term.encoder is not None:
            check_loadable(term.encoder, role="encoder")
        elif isinstance(term, HttpReward | JudgeReward):
            if isinstance(term, JudgeReward) and term.key_env is not None and existing_address(config) is None:
                key_in(term.key_env)
            warnings += [told for url in term.urls if (told := unreachable(url)) is not None]
    if warnings and existing_address(config) is None:
        raise ResourceError(f"{warnings[0][0].upper()}{warnings[0][1:]}.")
    return warnings


def unreachable(url: str) -> str | None:
    """Why no request will reach a reward server, as far as this machine can tell."""
    try:
        place = urlsplit(url)
        port = place.port or {"http": 80, "https": 443}[place.scheme]
    except (ValueError, KeyError):
        place, port = urlsplit(""), 0
    if not place.hostname:
        raise ConfigError(f"The reward server {url} must be a URL such as http://localhost:5000.")
    try:
        socket.create_connection((place.hostname, port), timeout=_SERVER_SECONDS).close()
    except OSError as error:
        return f"the reward server {url} does not answer here ({error})"
    return None


def _plan(config: RunConfig, *, device: str) -> Plan:
    judges = [config.model.model_copy(update={"path": judge.path}) for judge in config.ppo.judges if judge.path]
    bases = config.reward.bases if "reward" in config.stages else []
    return Plan(
        parameters=count_parameters(config.model),
        judge_parameters=sum(map(count_parameters, judges)),
        backbones=tuple(count_reward_parameters(base) for base in bases),
        device=device,
    )


def _preflight(config: RunConfig) -> tuple[Preflight, RunConfig]:
    """What the machine or cluster lacks for this run, and the configuration with each role's share of it."""
    address = existing_address(config)
    if address is not None:
        connect(config)
    nodes = [local_node()] if address is None else cluster_nodes()
    device = "cuda" if any(node.resources.get("GPU", 0) for node in nodes) else "cpu"
    check_engine_limits(config, device=device)
    plan = _plan(config, device=device)
    output_dir = Path(config.output_dir)
    config = with_shares(config, nodes, device=device if config.device == "auto" else config.device)
    report = inspect(config, nodes, output_dir=output_dir, object_store_need=plan.object_store_bytes(config))
    memory = plan.learner_bytes(config)
    if "ppo" in config.stages:
        memory += config.rollout.workers * plan.engine_bytes(config) + config.scoring.workers * plan.frozen_bytes(
            config
        )
    offered = sum(node.resources.get("memory", 0.0) for node in nodes)
    if device == "cpu" and memory > offered:
        report.shortages.append(
            f"the models take about {memory / GIB:.1f} GiB and {offered / GIB:.1f} GiB of memory are available"
        )
    return report, config
