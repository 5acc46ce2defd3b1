"""bin/submit against a head this test starts: the job's result is the command's result."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def submit(address: str, *arguments: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bin/submit", "--address", address, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
    )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of our own on free ports of loopback, ended by the ids of its processes."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0", "--num-cpus=2"]
    command += [
        "--ray-client-server-port=0",
        f"--temp-dir={tmp_path_factory.mktemp('ray')}",
        "--object-store-memory=200000000",
    ]
    with open(tmp_path_factory.mktemp("log") / "head", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 90
    while True:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                break
        assert process.poll() is None, "the head ended"
        assert time.monotonic() < deadline, "the head did not answer in 90 s"
        time.sleep(0.5)
    yield address
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)


def test_a_job_that_works_ends_with_0_and_shows_its_log(head: str) -> None:
    done = submit(head, "--", "python", "-c", "import rayrlhf.errors; print('the job', 'spoke')")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the job spoke" in done.stdout
    assert "package:" in done.stdout


def test_a_job_that_fails_ends_with_its_own_status_and_sentence(head: str) -> None:
    done = submit(head, "--", "rayrlhf", "run", "configs/quickstart.yaml", "ppo.update=3")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "did you mean ppo.updates?" in done.stdout


def test_an_impossible_request_fails_fast_on_a_cluster_too(head: str) -> None:
    begun = time.monotonic()
    done = submit(head, "--", "rayrlhf", "run", "configs/quickstart.yaml", "rollout.cpus=999")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "999 CPU" in done.stdout
    assert time.monotonic() - begun < 60


def test_no_head_is_one_sentence() -> None:
    begun = time.monotonic()
    done = submit(f"http://127.0.0.1:{free_port()}", "--", "true")
    assert done.returncode == 2
    assert "No Ray job server answered" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 30
