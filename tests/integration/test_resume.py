"""Six updates straight equal three updates, kill -9 of the whole job, and three resumed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import QUICKSTART, ROOT, command, environment, rows, succeed
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def kill_whole_job(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL the driver and every process it started, by their ids."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)


def wait_for(path: Path, *, timeout: float, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, f"the job ended with {process.returncode} before {path.name} appeared"
        assert time.monotonic() < deadline, f"{path} did not appear in {timeout} s"
        time.sleep(0.05)


def steps_of(run: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in rows(run / "metrics.jsonl", stage="ppo")}


def test_resume_after_kill_9_is_exact(ppo_only: list[str], tmp_path: Path) -> None:
    common = [*ppo_only, "ppo.updates=6", "ppo.kl.controller=adaptive", "ppo.guard.export=last"]
    common.append(f"output_dir={tmp_path}")
    succeed("run", str(QUICKSTART), *common, "name=straight", "checkpoint.every=3")

    arguments = ["run", str(QUICKSTART), *common, "name=broken", "checkpoint.every=3"]
    with open(tmp_path / "broken.log", "wb") as log:
        process = subprocess.Popen(
            command(*arguments), cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    broken = tmp_path / "broken"
    wait_for(broken / "checkpoints" / "step_000003", timeout=240, process=process)
    kill_whole_job(process)
    assert not (broken / "policy").exists()
    half_written = broken / "checkpoints" / "step_000005"
    half_written.mkdir()
    (half_written / "learner.pt").write_bytes(b"torn")

    out = succeed(*arguments, "--resume")
    assert "step_000005" in out
    assert "Resumed from step_000003" in out

    straight, resumed = steps_of(tmp_path / "straight"), steps_of(broken)
    assert list(resumed) == list(straight) == list(range(7))
    for step in range(1, 7):
        for name in ("policy/loss", "critic/loss", "kl/reference", "reward/score", "kl/coef", "ledger/trained"):
            assert resumed[step][name] == pytest.approx(straight[step][name], abs=1e-6), (step, name)
    prompts = [
        sorted((row["step"], row["sample_id"], row["response"]) for row in rows(run / "samples.jsonl", stage="ppo"))
        for run in (tmp_path / "straight", broken)
    ]
    assert prompts[0] == prompts[1]
    for name in ("policy", "critic"):
        ours, theirs = (load_file(run / name / "model.safetensors") for run in (tmp_path / "straight", broken))
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=0.0)
    assert os.listdir(broken / "checkpoints").count("step_000006") == 1


def test_a_finished_run_goes_on_as_it_is_configured(ppo_only: list[str], tmp_path: Path) -> None:
    """More updates under another KL coefficient: used from the next update on, one W&B run, costs of both processes."""
    common = ["run", str(QUICKSTART), *ppo_only, "name=longer", "checkpoint.every=1", f"output_dir={tmp_path}"]
    run = tmp_path / "longer"
    succeed(*common, "ppo.updates=1")
    first = json.loads((run / "summary.json").read_text())
    wandb_run = (run / "wandb_run_id").read_text().strip()
    assert "Nothing to do" in succeed(*common, "ppo.updates=1", "--resume")
    assert len(list(run.glob("wandb/offline-run-*"))) == 1

    out = succeed(*common, "ppo.updates=2", "ppo.kl.coef=5.0", "--resume")
    assert "ppo.kl.coef, ppo.updates" in out
    assert {step: row["kl/coef"] for step, row in steps_of(run).items() if step} == {1: 0.1, 2: 5.0}
    assert yaml.safe_load((run / "config.yaml").read_text())["ppo"]["kl"]["coef"] == 5.0
    second = json.loads((run / "summary.json").read_text())
    assert second["stages"]["ppo"]["updates"] == second["stages"]["ppo"]["policy_versions"] == 2
    assert second["wall_seconds"] > first["wall_seconds"] + 5.0
    assert second["stages"]["ppo"]["wall_seconds"] > first["stages"]["ppo"]["wall_seconds"] + 3.0
    assert second["starts"] == 2
    assert (run / "wandb_run_id").read_text().strip() == wandb_run
    assert {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")} == {wandb_run}
