"""`rayrlhf doctor`: what this machine or cluster offers, and what it lacks for a configuration."""

from pathlib import Path

import ray
import yaml

from rayrlhf.actors.cluster import GIB, PINNED, local_node
from rayrlhf.actors.cluster import installed_version as version_of
from rayrlhf.config import RunConfig, load_config
from rayrlhf.models.size import count_parameters
from rayrlhf.pipelines.plan import Plan, show_plan
from rayrlhf.pipelines.run import preflight
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


def show_dry_run(config: RunConfig) -> bool:
    """Print the resolved configuration and the plan; whether something is lacking."""
    console = Console()
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return _judge(console, config)


def _judge(console: Console, config: RunConfig) -> bool:
    try:
        found = preflight(config)
    finally:
        ray.shutdown()
    show_plan(console, config, Plan(parameters=count_parameters(config.model), device=found.device))
    for warning in found.warnings:
        console.warn(warning)
    for shortage in found.shortages:
        console.error(shortage)
    if not found.shortages:
        console.note(f"{config.name} fits.")
    return bool(found.shortages)
