"""`rayrlhf doctor`: what this machine or cluster offers, and what it lacks for a configuration."""

from pathlib import Path

import ray
import yaml

from rayrlhf.actors.cluster import GIB, PINNED, local_node
from rayrlhf.actors.cluster import installed_version as version_of
from rayrlhf.config import RunConfig, Stage, load_config
from rayrlhf.pipelines.checks import check_run
from rayrlhf.pipelines.folder import RunFolder
from rayrlhf.pipelines.plan import show_plan
from rayrlhf.pipelines.resuming import demand_begun, plan_resume
from rayrlhf.telemetry.console import Console


def diagnose(config_path: Path | None, overrides: list[str]) -> bool:
    """Print the findings; whether something is lacking."""
    console = Console()
    node = local_node()
    rows = [
        ["CPUs", f"{node.resources['CPU']:g}"],
        ["GPUs", f"{node.resources['GPU']:g}"],
        ["memory available", f"{node.resources['memory'] / GIB:.1f} GiB"],
        *[[package, version_of(package) or "not installed"] for package in PINNED],
    ]
    console.table("this machine", ["what", "found"], rows)
    if config_path is None:
        return any(version_of(package) is None for package in PINNED)
    return _judge(console, load_config(config_path, overrides))


def show_dry_run(config: RunConfig, *, only: Stage | None, resume: bool) -> bool:
    """Print the resolved configuration and the plan; whether something is lacking."""
    console = Console()
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return _judge(console, config, only=only, resume=resume)


def _judge(console: Console, config: RunConfig, *, only: Stage | None = None, resume: bool = False) -> bool:
    """Check as a start would, and start nothing; what is wrong is raised, what is lacking is listed."""
    if resume:
        folder = RunFolder(config)
        demand_begun(folder)
        plan_resume(folder, config if only is None else config.model_copy(update={"stages": [only]}))
    try:
        checked = check_run(config, only=only, resume=resume)
    finally:
        ray.shutdown()
    found = checked.preflight
    show_plan(console, checked.config, checked.plan)
    for note in checked.notes:
        console.note(note)
    for warning in found.warnings:
        console.warn(warning)
    for shortage in found.shortages:
        console.error(shortage)
    if not found.shortages:
        console.note(f"{config.name} fits.")
    return bool(found.shortages)
