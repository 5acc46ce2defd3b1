"""What growing and losing a rollout worker cost while a run goes on.

    python tests/benchmarks/elastic.py SFT_DIR REWARD_MODEL_DIR [--rounds 3] [key=value ...]

The directories are those of a finished quickstart. In one asynchronous run (max_staleness 2), in rounds:

    bare start    vLLM started by itself beside the run, same settings, same priority: from its process to its first token
    joiner        rollout workers 1 -> 2: from the request to the first tokens of the new worker, under the version in force
    loss          SIGKILL of a rollout worker while two serve: what the learner waits until the replacement serves

Reported are ratios of medians: joiner / bare start, and the learner's waiting, seconds an update, after a loss and before.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from overlap import ENGINE, ROOT, arguments_of

from rayrlhf.cli.live import _visit

if TYPE_CHECKING:
    from rayrlhf.actors.control import Visitor


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sft", type=Path)
    parser.add_argument("reward_model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options, overrides = parser.parse_known_args()
    bare: list[float] = []
    joined: list[float] = []
    waits: dict[str, list[float]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as folder:
        options.updates = 10_000
        own = arguments_of(options, Path(folder), "elastic", 2, ["rollout.cpus=0.3", *overrides])
        command = [sys.executable, "-m", "rayrlhf.cli.main", "run", *own]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run = Path(folder) / "elastic"
        try:
            until(lambda: updates(run) >= 3, process)
            with _visit(str(run), None, folder) as visitor:
                for number in range(options.rounds):
                    bare.append(bare_start(own[0], own[1:], options.sft, of_role(visitor)[0]["pid"]))
                    joined.append(joining(visitor, process))
                    losing(visitor, run, process, waits)
                    visitor.ask("scale", rollout=1)
                    until(lambda: len(of_role(visitor)) == 1, process)
                    print(f"round {number}: bare {bare[-1]:.1f} s, joiner {joined[-1]:.1f} s", flush=True)
        finally:
            process.terminate()
            process.wait(timeout=120)
    print(f"joiner's first tokens / bare start: {statistics.median(joined) / statistics.median(bare):.2f}")
    for when, seconds in waits.items():
        print(f"learner waits {statistics.mean(seconds):.3f} s an update {when} a loss ({len(seconds)} updates)")


def bare_start(config: str, overrides: list[str], model: Path, worker: int) -> float:
    """Seconds from the start of a process, as nice as a worker's, to the end of its vLLM's first token."""
    niceness = psutil.Process(worker).nice()
    source = ENGINE.format(niceness=niceness, config=config, overrides=overrides, model=str(model.absolute()))
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - begun


def joining(visitor: "Visitor", process: "subprocess.Popen[bytes]") -> float:
    """Seconds until a second rollout worker has made tokens."""
    known = {worker["number"] for worker in of_role(visitor)}
    begun = time.monotonic()
    visitor.ask("scale", rollout=2)

    def works() -> bool:
        return any(w["number"] not in known and w.get("tokens_per_second") for w in of_role(visitor))

    until(works, process)
    return time.monotonic() - begun


def losing(visitor: "Visitor", run: Path, process: "subprocess.Popen[bytes]", waits: dict[str, list[float]]) -> None:
    """Kill the younger of two workers; collect the learner's waiting before that and until the replacement serves."""
    first = updates(run)
    until(lambda: updates(run) >= first + 6, process)
    victim = max(of_role(visitor), key=lambda worker: worker["number"])
    before = updates(run)
    os.kill(victim["pid"], signal.SIGKILL)
    until(lambda: any(w["number"] > victim["number"] and w["state"] == "serving" for w in of_role(visitor)), process)
    after = updates(run)
    for row in rows(run):
        if first < row["step"] <= before or before < row["step"] <= after:
            seconds = row["time/step"] * row["time/learner_waiting"]
            waits["before" if row["step"] <= before else "after"].append(seconds)


def of_role(visitor: "Visitor") -> list[dict[str, Any]]:
    """The rollout workers."""
    return [worker for worker in visitor.status().get("workers", []) if worker["role"] == "rollout"]


def rows(run: Path) -> list[dict[str, Any]]:
    """The logged updates."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["step"] > 0]


def updates(run: Path) -> int:
    """How many there are."""
    return len(rows(run))


def until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", seconds: float = 300.0) -> None:
    """Wait for a condition while the run lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(
                f"the run ended with status {process.poll()}, or {seconds:.0f} s went by without what was waited for"
            )
        time.sleep(0.2)


if __name__ == "__main__":
    main()
