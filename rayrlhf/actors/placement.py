"""From a role's configuration to what Ray is asked for."""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayrlhf.config import RoleConfig

QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def role_gpus(role: RoleConfig, *, device: str) -> float:
    """GPUs of one process of the role."""
    return role.gpus if role.gpus is not None else (1.0 if device == "cuda" else 0.0)


def actor_options(role: RoleConfig, *, device: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Options of a Ray actor for one process of the role, its thread count and visible devices included."""
    gpus = role_gpus(role, device=device)
    threads = str(role.compute_threads)
    # Roles share cores by turns: a thread that spins while it waits keeps the core from the process that has work.
    env_vars = {**QUIET, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    env_vars |= env or {}
    if gpus == 0:
        # Ray leaves every GPU visible to a process that asked for none.
        env_vars["CUDA_VISIBLE_DEVICES"] = ""
    return {
        "num_cpus": role.placed_cpus,
        "num_gpus": gpus,
        "memory": int(role.memory_gib * 2**30) or None,
        "resources": dict(role.resources) or None,
        "runtime_env": {"env_vars": env_vars},
    }


def clerk_options(node_id: str) -> dict[str, Any]:
    """Options of a Ray actor that computes nothing and belongs on one node: no CPUs, no GPU in sight."""
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        "runtime_env": {"env_vars": {**QUIET, "CUDA_VISIBLE_DEVICES": ""}},
    }


def spawn(kind: type, options: dict[str, Any], *args: Any, name: str | None = None) -> Any:
    """Start an actor of a plain class, under a name that `ray list actors` shows.

    Ray never restarts it or repeats its calls: what either means, its pool knows.
    """
    made = ray.remote(max_restarts=0, max_task_retries=0, **options)(kind)
    return made.options(name=name).remote(*args)


def end(actor: Any) -> None:
    """End an actor's process, or find it ended: what comes after the work must not hide how the work went."""
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)
