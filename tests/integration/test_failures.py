"""Dead workers and bad input, each tried on the real pipeline."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import QUICKSTART, ROOT, TINY, command, environment, rayrlhf, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def actor_pid(driver: int, name: str) -> int | None:
    """The process of a Ray actor of the driver, by the title Ray gives it."""
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                return process.pid
        except psutil.NoSuchProcess:
            continue
    return None


def start_and_kill(arguments: list[str], run: Path, actor: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start a job, wait for its first update, SIGKILL one actor of it, and wait for the job's end."""
    with open(log, "wb") as sink:
        process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), stdout=sink, stderr=sink)
    deadline = time.monotonic() + 240
    while not ((run / "metrics.jsonl").exists() and rows(run / "metrics.jsonl", stage="ppo", step=1)):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, "no update in 240 s"
        time.sleep(0.05)
    pid = actor_pid(process.pid, actor)
    assert pid is not None
    psutil.Process(pid).kill()
    process.wait(timeout=240)
    return process


def test_asynchronous_training_keeps_its_bound(ppo_only: list[str], tmp_path: Path) -> None:
    arguments = [*ppo_only, "ppo.updates=4", "ppo.max_staleness=1", f"output_dir={tmp_path}", "name=async"]
    done = rayrlhf("run", str(QUICKSTART), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = rows(tmp_path / "async" / "metrics.jsonl", stage="ppo")[1:]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert max(row["rollout/staleness"] for row in logged) == 1
    assert logged[-1]["ledger/trained"] == 4 * 16


def test_a_terminated_job_ends_cleanly_and_resumes(ppo_only: list[str], tmp_path: Path) -> None:
    """SIGTERM to the whole process group, as a scheduler sends it: no process is left behind, and --resume goes on."""
    run = tmp_path / "ended"
    arguments = ["run", str(QUICKSTART), *ppo_only, "ppo.updates=12", "checkpoint.every=1", f"output_dir={tmp_path}"]
    core = max(os.sched_getaffinity(0))
    arguments += [f"{role}.cores=[{core}]" for role in ("rollout", "scoring", "learner")]
    with open(tmp_path / "log", "wb") as sink:
        process = subprocess.Popen(
            command(*arguments, "name=ended"),
            cwd=ROOT,
            env=environment(),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "step_000002").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint in 240 s"
        time.sleep(0.01)
    told = {row["step"] for row in rows(run / "metrics.jsonl", stage="ppo")}
    assert 2 in told, "a run that goes on from this checkpoint would lack the row of its update"
    for actor in ("RolloutWorker", "ScoringWorker", "LearnerActor"):
        assert psutil.Process(actor_pid(process.pid, actor)).cpu_affinity() == [core]
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    log = (tmp_path / "log").read_text()
    assert "--resume" in log.strip().splitlines()[-1]
    assert "Traceback" not in log
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left
    assert not (run / "policy").exists()
    resumed = rayrlhf(*arguments, "name=ended", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Resumed from" in resumed.stdout
    assert [row["step"] for row in rows(run / "metrics.jsonl", stage="ppo")] == list(range(13))


@pytest.mark.parametrize(("service", "told"), [("raylet", "raylet"), ("gcs_server", "control service (GCS)")])
def test_a_run_whose_own_ray_dies_says_so(service: str, told: str, tmp_path: Path) -> None:
    run = tmp_path / "bereft"
    log = tmp_path / "log"
    arguments = [*("run", str(QUICKSTART), f"output_dir={tmp_path}", "name=bereft", "stages=[sft]", *TINY)]
    with open(log, "wb") as sink:
        process = subprocess.Popen(
            command(*arguments, "sft.max_steps=100000", "sft.epochs=1000", "checkpoint.every=5"),
            cwd=ROOT,
            env=environment(),
            stdout=sink,
            stderr=sink,
        )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "sft" / "step_000005").exists():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint in 120 s"
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    next(member for member in family if member.name() == service).kill()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in log.read_text()
    sentence = log.read_text().strip().splitlines()[-1]
    assert f"rayrlhf: The {told} of the Ray on this machine" in sentence
    assert "(killed by SIGKILL)" in sentence
    assert sentence.endswith("--resume")
    assert json.loads((run / "failure.json").read_text())["message"] in sentence
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left


def refused(*arguments: str, status: int = 2) -> str:
    """The command must refuse in at most 30 s with one sentence on stderr."""
    begun = time.monotonic()
    done = rayrlhf(*arguments, timeout=60)
    assert time.monotonic() - begun < 30
    assert done.returncode == status, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("rayrlhf: ")
    return sentence


def test_bad_requests_end_in_one_sentence(tmp_path: Path) -> None:
    quick = ("run", str(QUICKSTART), f"output_dir={tmp_path}")
    assert "did you mean ppo.updates?" in refused(*quick, "ppo.update=3")
    assert "ppo.updates='many'" in refused(*quick, "ppo.updates=many")
    assert "does not exist" in refused("run", str(tmp_path / "absent.yaml"))
    assert "top_p=0.9" in refused(*quick, "sampling.top_p=0.9")
    assert "999 CPU" in refused(*quick, "rollout.cpus=999")
    assert "no run to resume" in refused(*quick, "--resume")
    empty = tmp_path / "empty_model"
    empty.mkdir()
    assert str(empty) in refused(*quick, "model.init=null", f"model.path={empty}")
    (empty / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 64}))
    assert "weights" in refused(*quick, "model.init=null", f"model.path={empty}")


def test_models_that_cannot_serve_are_refused_before_anything_starts(ppo_only: list[str], tmp_path: Path) -> None:
    start = ("run", str(QUICKSTART), *ppo_only, f"output_dir={tmp_path}")
    policy = next(item for item in ppo_only if item.startswith("model.path=")).partition("=")[2]
    assert "128 positions" in refused(*start, "model.max_length=300")
    assert "1 score" in refused(*start, f"ppo.rewards=[{{kind: model, path: {policy}}}]")


def test_a_gpu_on_a_cpu_machine_is_refused(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    assert "GPU" in refused("run", str(QUICKSTART), f"output_dir={tmp_path}", "device=cuda")


def test_bad_data_names_file_and_line(trained: Path, tmp_path: Path) -> None:
    def prompts(name: str, lines: list[str]) -> list[str]:
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("\n".join(lines) + "\n")
        return [
            "run",
            str(QUICKSTART),
            "stages=[ppo]",
            f"output_dir={tmp_path}",
            "model.init=null",
            f"model.path={trained / 'sft'}",
            f"ppo.rewards=[{{kind: model, path: {trained / 'reward_model'}}}]",
            "data.task=null",
            f"data.root={tmp_path}",
            f"data.prompts={{path: {name}, format: prompts}}",
        ]

    good = json.dumps({"prompt": "Guest: the soup was cold.\nHost:"})
    torn = refused(*prompts("torn.jsonl.gz", [good] * 3 + ['{"prompt": "cut of'] + [good] * 3))
    assert "torn.jsonl.gz" in torn
    assert "4" in torn
    long = refused(*prompts("long.jsonl.gz", [good] * 3 + [json.dumps({"prompt": "soup " * 400})]))
    assert "long.jsonl.gz" in long
    assert "4" in long
    assert "absent.jsonl" in refused(*prompts("real.jsonl.gz", [good]), "data.prompts.path=absent.jsonl")
