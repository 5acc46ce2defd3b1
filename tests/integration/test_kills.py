"""Every role of a real run is killed, stopped or resized while it goes on: the run is the undisturbed one, bit for bit."""

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import QUICKSTART, ROOT, TINY, command, environment, rayrlhf, rows, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UPDATES = 8
LONGER = [f"ppo.updates={UPDATES}", "ppo.guard.export=last", "checkpoint.every=3"]


def digest(run: Path, model: str = "policy") -> str:
    return sha256((run / model / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(ppo_only: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    succeed("run", str(QUICKSTART), *ppo_only, *LONGER, f"output_dir={output}", "name=calm")
    return output / "calm"


class Job:
    """A run under way."""

    def __init__(self, output: Path, name: str, *arguments: str) -> None:
        self.run = output / name
        self.log = output / f"{name}.log"
        self.arguments = ["run", str(QUICKSTART), *arguments, f"output_dir={output}", f"name={name}"]
        with open(self.log, "wb") as sink:
            self.process = subprocess.Popen(
                command(*self.arguments), cwd=ROOT, env=environment(), stdout=sink, stderr=sink
            )

    def until(self, condition: Callable[[], Any], seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"not in {seconds:.0f} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def at(self, step: int, stage: str = "ppo") -> None:
        path = self.run / "metrics.jsonl"
        self.until(lambda: path.exists() and rows(path, stage=stage, step=step))

    def worker(self, title: str) -> psutil.Process:
        """The process of an actor, by the title Ray gives it."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        raise AssertionError(f"no {title} among the processes of {self.run}")

    def status(self) -> str:
        return succeed("status", str(self.run), timeout=60)

    def end(self) -> str:
        self.process.wait(timeout=300)
        text = self.log.read_text()
        assert self.process.returncode == 0, text[-4000:]
        return " ".join(text.split())

    def summary(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.run / "summary.json").read_text())["stages"]["ppo"]
        return facts


def meets_termination(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def accounted(job: Job) -> None:
    ppo = job.summary()
    assert (ppo["samples_trained"], ppo["samples_lost"], ppo["samples_duplicated"]) == (UPDATES * 16, 0, 0)
    samples = rows(job.run / "samples.jsonl", stage="ppo")
    assert len({row["sample_id"] for row in samples}) == len(samples) == UPDATES * 16
    assert [row["step"] for row in rows(job.run / "metrics.jsonl", stage="ppo")] == list(range(UPDATES + 1))


def test_a_run_whose_every_role_is_killed_is_the_undisturbed_one_bit_for_bit(
    ppo_only: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, "hurt", *ppo_only, *LONGER)
    for step, actor in ((1, "RolloutWorker"), (2, "LearnerActor"), (4, "ScoringWorker"), (5, "RecorderActor")):
        job.at(step)
        job.worker(actor).kill()
    told = job.end()
    accounted(job)
    assert job.summary()["restarts"] == {"rollout": 1, "scoring": 1, "learner": 1}
    assert "updates since the start repeated in" in told
    assert "with the same weights" in told
    assert "Another one goes on with the same files" in told
    assert digest(job.run) == digest(undisturbed)
    events = [json.loads(line) for line in (job.run / "events.jsonl").read_text().splitlines()]
    assert {"rollout", "scoring", "learner"} <= {event["role"] for event in events if event["kind"] == "death"}
    assert all(event["pid"] for event in events if event["kind"] == "death")
    samples = [
        [(row["sample_id"], row["response"], row["score"]) for row in rows(run / "samples.jsonl", stage="ppo")]
        for run in (job.run, undisturbed)
    ]
    assert samples[0] == samples[1]
    assert not list((job.run / "experience").glob("*"))


def test_a_killed_driver_goes_on_from_its_last_update(ppo_only: list[str], undisturbed: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "cut", *ppo_only, *LONGER, "checkpoint.every=100")
    job.at(5)
    # Ray's agents take a while longer to find that they are alone; they hold nothing.
    family = [p for p in psutil.Process(job.process.pid).children(recursive=True) if not p.name().endswith("Agent")]
    job.process.kill()
    job.process.wait(timeout=30)
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, left
    refused = rayrlhf("status", str(job.run), timeout=60)
    assert refused.returncode == 2, refused.stdout
    out = " ".join(succeed(*job.arguments, "--resume").split())
    assert "Resumed from the start and 5 updates after it" in out or "Resumed from the start and 6 updates" in out
    accounted(job)
    assert digest(job.run) == digest(undisturbed)


def test_a_changed_optimizer_resumes_from_the_checkpoint(ppo_only: list[str], tmp_path: Path) -> None:
    """The updates since then were made with the former one: they are made anew."""
    job = Job(tmp_path, "other", *ppo_only, *LONGER)
    job.at(5)
    job.process.kill()
    job.process.wait(timeout=30)
    out = succeed(*job.arguments, "ppo.optim.lr=1.0e-5", "--resume")
    assert "Resumed from step_000003." in " ".join(out.split())
    accounted(job)


def test_supervised_stages_outlive_their_learners(tmp_path: Path) -> None:
    """Before the first checkpoint and after it; what they train is what an undisturbed run trains."""
    stages = [*TINY, "stages=[sft,reward]", "sft.max_steps=24", "reward.max_steps=30", "checkpoint.every=10"]
    stages += ["data.task.preferences=1200"]
    succeed("run", str(QUICKSTART), *stages, f"output_dir={tmp_path}", "name=calm")
    job = Job(tmp_path, "hurt", *stages)
    for track, step in (("sft", 5), ("reward", 15)):
        job.at(step, track)
        job.worker("LearnerActor").kill()
    told = job.end()
    assert "sft: learner rank 0 (train_step) failed: its process died" in told
    assert "A new learner starts, and goes on from the start." in told
    assert "A new learner starts, and goes on from step_000010." in told
    for model in ("sft", "reward_model"):
        assert digest(job.run, model) == digest(tmp_path / "calm", model)
    logged = [
        [(row["stage"], row["step"], row["optim/grad_norm"]) for row in rows(run / "metrics.jsonl")]
        for run in (job.run, tmp_path / "calm")
    ]
    assert logged[0] == logged[1]


def test_a_stopped_worker_is_found_by_its_silence_and_replaced(
    ppo_only: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, "silent", *ppo_only, *LONGER, "rollout.stall_timeout=5", "scoring.stall_timeout=5")
    job.at(1)
    job.worker("RolloutWorker").send_signal(signal.SIGSTOP)
    job.until(lambda: "serves in place of rollout worker 0" in job.log.read_text().replace("\n", " "))
    told = job.end()
    accounted(job)
    assert "Its process does not answer" in told
    assert "Its stacks are in" in told
    assert "rollout/stream.py" in (job.run / "stacks" / "rollout-0.txt").read_text()
    assert digest(job.run) == digest(undisturbed)


def test_a_run_is_watched_scaled_rewarded_anew_and_stopped_while_it_goes_on(
    ppo_only: list[str], trained: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, "live", *ppo_only, *LONGER, "ppo.updates=500", "checkpoint.every=1000")
    job.at(1)
    shown = job.status()
    assert "live" in shown
    assert "rollout 0" in shown
    assert "learner 0" in shown
    arguments = command("status", str(job.run), "--watch")
    watching = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    job.until(lambda: meets_termination(watching.pid))
    assert "learner 0" in job.status()  # it has begun to show meanwhile
    watching.terminate()
    page, told = watching.communicate(timeout=60)
    assert (watching.returncode, told) == (130, b"rayrlhf: interrupted\n"), told
    assert b"learner 0" in page
    assert "Scaling: rollout workers 1 -> 2." in succeed("scale", str(job.run), "--rollout-workers", "2", timeout=60)
    job.until(lambda: any("rollout 1" in line and "serving" in line for line in job.status().splitlines()))
    before = rows(job.run / "metrics.jsonl", stage="ppo")[-1]["step"]
    job.at(before + 3)
    assert rows(job.run / "metrics.jsonl", stage="ppo")[-1]["perf/workers_rollout"] == 2
    assert "rollout workers 2 -> 1" in succeed("scale", str(job.run), "--rollout-workers", "1", timeout=60)
    job.until(lambda: "rollout 1" not in job.status())
    assert "at least 1" in rayrlhf("scale", str(job.run), "--rollout-workers", "0", timeout=60).stderr
    told = succeed("swap-reward", str(job.run), str(trained / "reward_model"), timeout=60)
    after = int(told.split("after update ")[1].split(",")[0])
    job.at(after + 2)
    job.worker("LearnerActor").kill()  # what the swap changed of it is repeated too
    job.at(after + 4)
    versions = [(row["step"], row["reward_version"]) for row in rows(job.run / "samples.jsonl", stage="ppo")]
    assert {version for step, version in versions if step <= after} == {0}
    assert {version for step, version in versions if step > after} == {1}
    assert (
        "a reward model gives 1 score" in rayrlhf("swap-reward", str(job.run), str(trained / "sft"), timeout=60).stderr
    )
    assert "stops after the step in progress" in succeed("stop", "live", "--output-dir", str(tmp_path), timeout=60)
    assert job.process.wait(timeout=120) == 3
    last = " ".join(job.log.read_text().split())
    assert "as asked" in last
    assert f"Go on with: rayrlhf {shlex.join(job.arguments)} --resume" in last
    step = rows(job.run / "metrics.jsonl", stage="ppo")[-1]["step"]
    assert (job.run / "checkpoints" / f"step_{step:06d}" / "COMPLETE").exists()
    assert not (job.run / "run.json").exists()
