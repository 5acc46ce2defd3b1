"""What is lost from the object store in a whole run is made again: the run is that of one without losses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICKSTART, ROOT, environment, rows
from test_failures import start_and_kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOSING = """
import sys, time
from dataclasses import replace
import numpy as np
import ray
from ray.exceptions import ObjectLostError
from rayrlhf.actors.learner import LearnerGroup
from rayrlhf.actors.recorder import Recorder
from rayrlhf.actors.rollout import RolloutPool
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.config import load_config
from rayrlhf.pipelines.run import run_stages

@ray.remote(num_cpus=0)
class Owner:
    def put(self):
        return [ray.put(np.zeros(1000))]

def lost_object():
    # An object is lost with the process that put it.
    owner = Owner.remote()
    (ref,) = ray.get(owner.put.remote())
    ray.kill(owner)
    while True:
        try:
            ray.get(ref, timeout=60)
        except ObjectLostError:
            return ref
        time.sleep(0.1)

def losing(kind, method, calls, *, given=None, answered=None):
    original, count = getattr(kind, method), 0
    async def lossy(self, *args, **options):
        nonlocal count
        count += 1
        lose = count in calls
        if lose:
            print("lost by", method, flush=True)
        answer = await original(self, *(given(*args) if lose and given else args), **options)
        return answered(answer) if lose and answered else answer
    setattr(kind, method, lossy)

# The calls of `generate` are the parity gate's, as loaded and as published, and the first evaluation and its confirmation.
losing(RolloutPool, "generate", {1, 2, 5}, answered=lambda parts: [replace(part, ref=lost_object()) for part in parts])
losing(RolloutPool, "finished", {2}, answered=lambda drawn: replace(drawn, ref=lost_object()))
losing(ScoringPool, "score", {2, 6}, answered=lambda scored: (lost_object(), scored[1]))
losing(LearnerGroup, "publish", {1}, answered=lambda weights: replace(weights, buckets=(lost_object(),) * len(weights.buckets)))
losing(Recorder, "samples", {3}, given=lambda step, wanted, chunks, batch: (step, wanted, [lost_object()], batch))
run_stages(load_config(sys.argv[1], sys.argv[2:]), resume=False)
"""


def test_a_run_that_loses_objects_is_the_run_that_loses_none(
    ppo_only: list[str], trained: Path, tmp_path: Path
) -> None:
    arguments = [str(QUICKSTART), *ppo_only, f"output_dir={tmp_path}", "name=lossy"]
    done = subprocess.run(
        [sys.executable, "-c", LOSING, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.count("lost by") == 8
    assert 2 <= done.stdout.replace("\n", " ").count("are drawn again") <= 3
    ours, theirs = (
        json.loads((run / "summary.json").read_text())["stages"]["ppo"] for run in (tmp_path / "lossy", trained)
    )
    assert (ours["samples_lost"], ours["samples_duplicated"]) == (0, 0)
    assert ours["samples_trained"] == theirs["samples_trained"]
    logged = {row["step"]: row for row in rows(tmp_path / "lossy" / "metrics.jsonl", stage="ppo")}
    assert logged[3]["ledger/reissued"] >= 16
    for row in rows(trained / "metrics.jsonl", stage="ppo"):
        assert logged[row["step"]].get("policy/loss") == row.get("policy/loss")
    samples = [
        [(row["stage"], row["sample_id"], row["response"]) for row in rows(run / "samples.jsonl")]
        for run in (tmp_path / "lossy", trained)
    ]
    assert samples[0] == samples[1]


def test_a_killed_recorder_costs_nothing(ppo_only: list[str], tmp_path: Path) -> None:
    arguments = ["run", str(QUICKSTART), *ppo_only, "ppo.updates=6", f"output_dir={tmp_path}", "name=mute"]
    done = start_and_kill(arguments, tmp_path / "mute", "RecorderActor", tmp_path / "log")
    told = (tmp_path / "log").read_text()
    assert done.returncode == 0, told[-3000:]
    assert "Another one goes on with the same files" in told.replace("\n", " ")
    logged = rows(tmp_path / "mute" / "metrics.jsonl", stage="ppo")
    assert [row["step"] for row in logged] == list(range(7))
    samples = rows(tmp_path / "mute" / "samples.jsonl", stage="ppo")
    assert len({row["sample_id"] for row in samples}) == len(samples) == 6 * 16
