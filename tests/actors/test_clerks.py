"""Processes that write and answer for the driver: one that hangs is replaced as one that died is."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rayrlhf.actors import control, recorder
from rayrlhf.actors.control import ControlDesk, Visitor
from rayrlhf.actors.recorder import Recorder
from rayrlhf.config import load_config

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def stopped(actor: Any) -> psutil.Process:
    """The actor's process, which does nothing from now on."""
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))
    process.send_signal(signal.SIGSTOP)
    return process


def ended(process: psutil.Process) -> bool:
    """Whether it is gone, soon."""
    deadline = time.monotonic() + 30
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_control_desk_that_hangs_is_replaced_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_EXCHANGE_SECONDS", 1.0)
    desk = ControlDesk("hanging")
    assert desk.exchange({"step": 1}, {}, 0.1) == {}
    process = stopped(desk._actor)
    assert desk.exchange({"step": 2}, {}, 0.1) == {}
    assert ended(process)
    monkeypatch.setattr(control, "_EXCHANGE_SECONDS", 30.0)
    for step in range(3, 6):
        assert desk.exchange({"step": step}, {}, 0.1) == {}
    assert Visitor("hanging", desk.name).status() == {"step": 5}


async def test_a_recorder_that_hangs_is_ended_before_another_goes_on_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["wandb.mode=disabled"])
    told: list[str] = []
    written = Recorder(tmp_path, config, wandb_run_id=None, last_steps={}, tell=told.append)
    await written.log("sft", 1, {"policy/nll": 1.0})
    process = stopped(written._actor)
    monkeypatch.setattr(recorder, "_TIMEOUT", 20.0)
    await written.log("sft", 2, {"policy/nll": 2.0})
    assert ended(process)
    written.close({})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["policy/nll"]) for row in rows] == [(1, 1.0), (2, 2.0)]
    assert told == ["Waited 20 s for the recorder (log), in vain. Another one goes on with the same files."]
