"""The costs of a run are those of all its processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayrlhf.telemetry.account import RunAccount, forget_stage


def test_times_restarts_tokens_and_memory_add_up_over_processes(tmp_path: Path) -> None:
    with RunAccount(tmp_path, peak_bytes=lambda: 500) as first:
        with first.stage("reward"):
            first.add_tokens("reward", "reward", 100)
            time.sleep(0.2)
        with pytest.raises(KeyboardInterrupt), first.stage("ppo"):
            first.watch_restarts(lambda: {"rollout": 2, "scoring": 1})
            time.sleep(0.2)
            raise KeyboardInterrupt
    with RunAccount(tmp_path, peak_bytes=lambda: 300) as second:
        assert second.processes == 2
        assert second.stage_seconds("ppo") == pytest.approx(0.2, abs=0.1)
        with second.stage("ppo"):
            assert second.restarts("ppo") == {"rollout": 2, "scoring": 1, "learner": 0}
            second.watch_restarts(lambda: {"rollout": 1, "scoring": 0})
            time.sleep(0.2)
            assert second.stage_seconds("ppo") == pytest.approx(0.4, abs=0.15)
        assert second.restarts("ppo") == {"rollout": 3, "scoring": 1, "learner": 0}
        second.add_tokens("reward", "reward_01", 50)
        assert second.tokens("reward") == 150
        assert second.peak_memory_bytes == 500
        assert second.wall_seconds == pytest.approx(0.6, abs=0.2)
    forget_stage(tmp_path, "ppo")
    assert RunAccount(tmp_path, peak_bytes=lambda: 0).restarts("ppo")["rollout"] == 0


KILLED = """
import sys, time
from pathlib import Path
from rayrlhf.telemetry.account import RunAccount
with RunAccount(Path(sys.argv[1]), peak_bytes=lambda: 7, interval=0.05) as account, account.stage("ppo"):
    account.watch_restarts(lambda: {"rollout": 4})
    time.sleep(0.5)
    print("now", flush=True)
    time.sleep(60)
"""


def test_a_kill_loses_seconds_at_most(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    account = json.loads((tmp_path / "account.json").read_text())
    assert account["stages"]["ppo"]["restarts"]["rollout"] == 4
    assert account["stages"]["ppo"]["wall_seconds"] > 0.3
    assert account["peak_memory_bytes"] == 7
