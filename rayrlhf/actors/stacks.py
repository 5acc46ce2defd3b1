"""Where a process hangs: each can write its threads' stacks into the run's folder, and is asked to before it is replaced."""

import faulthandler
import os
import signal
import time
from pathlib import Path

import ray

from rayrlhf.config import RunConfig

_WRITES_SECONDS = 2.0


def stacks_file(config: RunConfig, role: str, number: int) -> Path:
    """Where the stacks of a worker lie."""
    return Path(config.output_dir).absolute() / config.name / "stacks" / f"{role}-{number}.txt"


def answer_for_stacks(config: RunConfig, role: str, number: int) -> None:
    """In a worker: write all threads' stacks whenever SIGUSR1 comes; nothing where the folder is not to be had."""
    try:
        path = stacks_file(config, role, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Kept open for as long as the process lives: the handler writes to its descriptor.
        faulthandler.register(signal.SIGUSR1, file=open(path, "a"), all_threads=True)  # noqa: SIM115
    except OSError:
        return


def ask_for_stacks(path: Path, *, node: str | None, pid: int | None) -> str:
    """Have a process of this node write its stacks; where they lie, for the end of a sentence, or nothing."""
    if pid is None or node != ray.get_runtime_context().get_node_id() or not path.exists():
        return ""
    before = path.stat().st_size
    try:
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGCONT)  # one that was stopped could not answer; it is ended in a moment
    except OSError:
        return ""
    deadline = time.monotonic() + _WRITES_SECONDS
    while path.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    return f" Its stacks are in {path}." if path.stat().st_size > before else ""


def last_log_lines(pid: int | None, *, lines: int = 20) -> list[str]:
    """The end of what a process of this node has logged; empty where nothing is found."""
    session = ray._private.worker.global_worker.node
    if pid is None or session is None:
        return []
    found: list[str] = []
    for path in sorted(Path(session.get_logs_dir_path()).glob(f"worker-*-{pid}.*")):
        found += path.read_text(errors="replace").splitlines()
    return [line for line in found if not line.startswith(":")][-lines:]
