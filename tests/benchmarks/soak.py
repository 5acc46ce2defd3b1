"""A long run under fire: every so often a random process of a random role is killed or stopped, and the pools are resized.

    python tests/benchmarks/soak.py --updates 600 --every 60 [--undisturbed] [key=value ...]

Two nodes of one cluster on this machine; the quickstart's task with max_staleness 2. What dies: rollout and scoring workers,
the learner, and the second node as a whole (its raylet), which comes back. `--undisturbed` does the same run without any
of it. At the end: what was lost, doubled or too old, the gold reward, and whether memory, of all processes and of one of
each kind, and object store stayed flat.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray.cluster_utils import Cluster

from rayrlhf.actors.control import Visitor
from rayrlhf.errors import RayrlhfError

Value = TypeVar("Value")
ROOT = Path(__file__).parents[2]
STORE = 300 * 2**20
NODE = {"num_cpus": 1, "object_store_memory": STORE, "resources": {"second": 8}}


def main() -> None:
    """Run, disturb, report; exit status 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between blows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="/tmp/soak")
    parser.add_argument("--undisturbed", action="store_true")
    options, overrides = parser.parse_known_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE})
    second = cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    name = "calm" if options.undisturbed else "soak"
    run = Path(options.output) / name
    process = start(cluster.address, name, options, overrides)
    blows: list[str] = []
    readings: list[dict[str, float]] = []
    chance = random.Random(options.seed)
    try:
        last = time.monotonic()
        while process.poll() is None:
            time.sleep(1.0)
            readings.append(reading(cluster, process.pid))
            if options.undisturbed or time.monotonic() - last < options.every or not under_way(run):
                continue
            last = time.monotonic()
            told, second = strike(cluster, second, name, run, chance)
            blows.append(told)
            print(f"{time.strftime('%H:%M:%S')} {told}", flush=True)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
        ray.shutdown()
        cluster.shutdown()
    sys.exit(report(run, process.returncode, blows, readings))


def start(address: str, name: str, options: argparse.Namespace, overrides: list[str]) -> "subprocess.Popen[bytes]":
    """The run, as a process of its own."""
    arguments = [
        *("run", str(ROOT / "configs" / "quickstart.yaml"), f"cluster.address={address}"),
        *(f"output_dir={options.output}", f"name={name}", "ppo.max_staleness=2", f"ppo.updates={options.updates}"),
        *("rollout.cpus=0.4", "scoring.cpus=0.3", "learner.cpus=0.4", "rollout.threads=1", "scoring.threads=1"),
        *("learner.threads=1", "rollout.stall_timeout=15", "scoring.stall_timeout=15", "learner.stall_timeout=30"),
        *("rollout.max_restarts=20", "scoring.max_restarts=20", "learner.max_restarts=20", "wandb.mode=offline"),
        *overrides,
    ]
    Path(options.output).mkdir(parents=True, exist_ok=True)
    with open(Path(options.output) / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rayrlhf.cli.main", *arguments], cwd=ROOT, stdout=log, stderr=log
        )


def under_way(run: Path) -> bool:
    """Whether the ppo stage has made an update."""
    path = run / "metrics.jsonl"
    return (run / "run.json").exists() and path.exists() and '"stage": "ppo", "step": 1,' in path.read_text()


def strike(cluster: Cluster, second: Any, name: str, run: Path, chance: random.Random) -> tuple[str, Any]:
    """One blow; what it was, and the second node as it is now."""
    kind = chance.choice(["kill", "kill", "kill", "stop", "scale", "node"])
    try:
        visitor = Visitor(name, json.loads((run / "run.json").read_text())["actor"])
        if kind == "scale":
            return visitor.ask("scale", rollout=chance.choice([1, 2]), scoring=chance.choice([1, 2])), second
        if kind == "node":
            cluster.remove_node(second, allow_graceful=False)
            return "The second node is gone, and another one comes.", cluster.add_node(**NODE)
        workers = [worker for worker in visitor.status()["workers"] if worker["pid"]]
        worker = chance.choice(workers)
        os.kill(worker["pid"], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        return f"{kind} {worker['role']} worker {worker['number']} ({worker['state']})", second
    except (RayrlhfError, OSError, KeyError) as error:
        return f"no blow: {error}", second


def reading(cluster: Cluster, driver: int) -> dict[str, float]:
    """Bytes of all processes of the run and of the objects in its stores; by kind of process, those of one."""
    family = [psutil.Process(driver), *(p for node in cluster.list_all_nodes() for p in processes_of(node))]
    by_kind: dict[str, list[int]] = {}
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            kind = "driver" if process.pid == driver else kind_of(process)
            by_kind.setdefault(kind, []).append(resident(process))
    one = {kind: statistics.mean(values) for kind, values in by_kind.items()}
    return {"memory": float(sum(map(sum, by_kind.values()))), "objects": cluster_resources(), **one}


def kind_of(process: psutil.Process) -> str:
    """A worker's class, without the call it is at; for others the name."""
    return (process.cmdline() or [process.name()])[0].rpartition("/")[2].removeprefix("ray::").partition(".")[0]


def processes_of(node: Any) -> list[psutil.Process]:
    """The raylet of a node, with the GCS where it is, and what they have started."""
    try:
        started = (info.process.pid for kind in ("raylet", "gcs_server") for info in node.all_processes.get(kind, []))
        return [
            each for pid in started for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
        ]
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> int:
    """Bytes that are its own."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def cluster_resources() -> float:
    """Bytes of objects in all stores."""
    total = ray.cluster_resources().get("object_store_memory", 0.0)
    return float(total - ray.available_resources().get("object_store_memory", total))


def report(run: Path, status: int, blows: list[str], readings: list[dict[str, float]]) -> int:
    """Print what came of it; 1 where something is not as it should be."""
    print(f"{len(blows)} blows; the run ended with status {status}")
    if status != 0:
        return 1
    ppo = json.loads((run / "summary.json").read_text())["stages"]["ppo"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "ppo" and row["step"] > 0]
    stale = max(row["rollout/staleness"] for row in rows)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    names = [row["sample_id"] for row in samples if row["stage"] == "ppo"]
    print(f"updates {len(rows)}, restarts {ppo['restarts']}, wall {ppo['wall_seconds']:.0f} s")
    print(f"trained {ppo['samples_trained']}, lost {ppo['samples_lost']}, doubled {ppo['samples_duplicated']}")
    print(f"largest staleness {stale:.0f}; gold {ppo['gold_before']:.3f} -> {ppo['gold_after']:.3f}")
    kinds = dict.fromkeys(kind for each in readings for kind in each)
    print("MiB, mean of each quarter; below the first two of one process of a kind, where it has 20 MiB")
    for what in kinds:
        values = [[each[what] / 2**20 for each in part if what in each] for part in split(readings, 4)]
        means = [statistics.mean(part) if part else 0.0 for part in values]
        if what in ("memory", "objects") or max(means) >= 20:
            print(f"    {what}: " + ", ".join(f"{mean:.0f}" for mean in means))
    sound = (
        ppo["samples_lost"] == ppo["samples_duplicated"] == 0
        and stale <= 2
        and len(set(names)) == len(names) == ppo["samples_trained"]
    )
    return 0 if sound else 1


def split(values: list[Value], parts: int) -> list[list[Value]]:
    """Parts of about the same length, in order."""
    size = max(1, len(values) // parts)
    return [values[i * size : (i + 1) * size] for i in range(parts)]


if __name__ == "__main__":
    main()
