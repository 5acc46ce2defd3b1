"""One driver at a time, whatever happens to the folder or to the driver."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayrlhf.config import load_config
from rayrlhf.errors import CheckpointError, ConfigError
from rayrlhf.pipelines import claim
from rayrlhf.pipelines.claim import claimed
from rayrlhf.pipelines.run import run_stages

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def another_driver(root: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the run, ended with SIGKILL."""
    hold = (
        "import sys; from pathlib import Path; from rayrlhf.pipelines.claim import claimed\n"
        "with claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def content(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("resume", "only"), [(False, None), (False, "sft"), (False, "ppo"), (True, None), (True, "reward")]
)
def test_a_second_start_is_refused_before_anything_is_touched(tmp_path: Path, resume: bool, only: str | None) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", [f"output_dir={tmp_path}", "name=live"])
    live = tmp_path / "live"
    for path in (
        "config.yaml",
        "metrics.jsonl",
        "sft/config.json",
        "policy/config.json",
        "checkpoints/step_000002/COMPLETE",
    ):
        (live / path).parent.mkdir(parents=True, exist_ok=True)
        (live / path).write_text("{}\n")
    with another_driver(live) as other:
        before = content(tmp_path)
        with pytest.raises(
            CheckpointError, match=rf"Another run is writing to {live} \(process {other.pid} on .*, since"
        ):
            run_stages(config, resume=resume, only=only)  # type: ignore[arg-type]
        assert content(tmp_path) == before


def test_moving_the_folder_does_not_free_the_name(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    with another_driver(tmp_path / "live"):
        (tmp_path / "live").rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="Another run"), claimed(tmp_path / "live"):
            pass


def test_a_killed_driver_holds_nothing(tmp_path: Path) -> None:
    with another_driver(tmp_path / "run"):
        pass
    assert (tmp_path / ".run.lock").exists()
    with claimed(tmp_path / "run"):
        record = json.loads((tmp_path / ".run.lock").read_text())
        assert record["pid"] == os.getpid()
    assert not (tmp_path / ".run.lock").exists()
    with claimed(tmp_path / "run"):
        pass


def foreign_record(path: Path) -> None:
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": 0.0, "machine": "another kernel"}))


def test_a_driver_on_another_machine_is_known_by_its_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where locks do not reach over the file system, the record and its heartbeat do."""
    monkeypatch.setattr(claim, "_HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(claim, "_WATCHED_SECONDS", 0.6)
    path = tmp_path / ".run.lock"
    foreign_record(path)
    stop = threading.Event()
    with open(path, "a+") as file:
        heart = threading.Thread(target=claim._beat, args=(file, stop))
        heart.start()
        try:
            with pytest.raises(CheckpointError, match=r"process 7 on elsewhere"), claimed(tmp_path / "run"):
                pass
        finally:
            stop.set()
            heart.join()
    assert json.loads(path.read_text())["host"] == "elsewhere"
    begun = time.monotonic()
    with claimed(tmp_path / "run"):
        assert 0.5 < time.monotonic() - begun < 5.0


def test_the_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(claim, "_WATCHED_SECONDS", 2.0)
    with claimed(tmp_path / "run"):
        assert claim._lives(tmp_path / ".run.lock")


def test_an_output_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir=.*file cannot hold"), claimed(tmp_path / "file" / "run"):
        pass
