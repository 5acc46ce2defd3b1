"""bin/submit against a head this test starts: the job's result is the command's result."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Head:
    """A head of our own: where its job server is, and the environment that may talk to it."""

    address: str
    environment: dict[str, str]
    folder: str = ""
    """Its default temporary directory is `ray` in here."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def environment_of(token: str | None) -> dict[str, str]:
    """Token authentication with a token of the test's own, or with none: the user's is neither read nor replaced."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    # As cluster/README.md asks: a job's `python` is the first one on the PATH that its head was started with.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    return environment if token is None else {**environment, "RAY_AUTH_TOKEN": token}


def submit(head: Head, *arguments: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bin/submit", "--address", head.address, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        env=head.environment,
    )


def ray_job(head: Head, *arguments: str) -> str:
    done = subprocess.run(
        [RAY, "job", *arguments, "--address", head.address],
        capture_output=True,
        text=True,
        timeout=60,
        env=head.environment,
    )
    return done.stdout + done.stderr


def job_id_of(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("job: raysubmit_")).split()[1]


def wait_until_it_answers(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{head.address}/api/version", headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    )
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, f"the head ended: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"the head did not answer in 120 s: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, by their ids."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=30)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port, dashboard, client = free_ports(3)
    environment = environment_of(secrets.token_hex(32))
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    command += [f"--ray-client-server-port={client}", "--object-store-memory=200000000", "--disable-usage-stats"]
    # Sockets live under this folder and a socket's path may have 107 characters, so it is a short one.
    with tempfile.TemporaryDirectory(prefix="head-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(f"http://127.0.0.1:{dashboard}", environment, folder)
        log = Path(folder) / "head.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, f"--temp-dir={folder}/ray"], env=head.environment, stdout=sink, stderr=sink
            )
        try:
            wait_until_it_answers(head, process, log)
            yield head
        finally:
            end(process)


def test_a_job_that_works_ends_with_0_and_shows_its_log(head: Head) -> None:
    program = "import sys, rayrlhf.errors; print('the job', 'spoke'); print('code from', rayrlhf.errors.__file__)"
    done = submit(head, "--", "python", "-c", f"{program}; print('prefix', sys.prefix)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the job spoke" in done.stdout
    assert "package:" in done.stdout
    came_from = next(line for line in done.stdout.splitlines() if line.startswith("code from "))
    assert "working_dir_files" in came_from, "the code that ran is not the code that travelled"
    assert f"prefix {sys.prefix}" in done.stdout.splitlines(), "the job ran outside the head's environment"


def test_only_the_named_environment_travels(head: Head) -> None:
    mine = Head(head.address, {**head.environment, "RAYRLHF_TEST_PRIVATE": "stays here"})
    program = "import os; print('deduplicated', os.environ['RAY_DEDUP_LOGS'], os.environ.get('RAYRLHF_TEST_PRIVATE'))"
    done = submit(mine, "--", "python", "-c", program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deduplicated 0 None" in done.stdout


def test_a_job_that_fails_ends_with_its_own_status(head: Head) -> None:
    done = submit(head, "--", "python", "-c", "print('before', 'the end'); raise SystemExit(7)")
    assert done.returncode == 7, done.stdout + done.stderr
    assert "before the end" in done.stdout
    assert "FAILED" in done.stdout


def test_a_bad_configuration_ends_with_2_and_its_sentence(head: Head) -> None:
    done = submit(head, "--", "rayrlhf", "run", "configs/quickstart.yaml", "ppo.update=3")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "did you mean ppo.updates?" in done.stdout


def test_an_impossible_request_fails_fast_on_a_cluster_too(head: Head) -> None:
    begun = time.monotonic()
    wish = ["rollout.cpus=999", f"output_dir={head.folder}/runs"]
    done = submit(head, "--", "rayrlhf", "run", "configs/quickstart.yaml", *wish)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "999 CPU" in done.stdout
    assert time.monotonic() - begun < 60


def test_a_relative_output_dir_is_refused_before_its_results_can_be_deleted(head: Head) -> None:
    done = submit(head, "--", "rayrlhf", "run", "configs/quickstart.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "output_dir=runs" in done.stdout
    assert "which Ray deletes: give an absolute path" in done.stdout


def test_a_run_beside_a_started_cluster_has_a_ray_of_its_own(head: Head) -> None:
    """Ray joins what was started on the machine, if it is not told otherwise, and then refuses the options of a local one."""
    program = """
import ray
from rayrlhf.actors.cluster import connect
from rayrlhf.config import load_config
connect(load_config("configs/quickstart.yaml", ["cluster.object_store_gib=0.1"]))
print("joined", ray.get_runtime_context().gcs_address)
"""
    environment = {**head.environment, "RAY_TMPDIR": head.folder}
    seen = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, env=environment
    )
    assert seen.returncode == 0, seen.stderr[-2000:]
    own = seen.stdout.split()[-1]
    started = (Path(head.folder) / "ray" / "ray_current_cluster").read_text().strip()
    assert own != started


def test_a_wrong_token_is_one_sentence(head: Head, tmp_path: Path) -> None:
    address = (Path(head.folder) / "ray" / "ray_current_cluster").read_text().strip()
    run = ["run", "configs/quickstart.yaml", f"output_dir={tmp_path}", f"cluster.address={address}"]
    done = subprocess.run(
        [sys.executable, "-m", "rayrlhf.cli.main", *run],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env=environment_of(secrets.token_hex(32)),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "cannot be joined" in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


def test_ctrl_c_stops_the_waiting_and_not_the_job(head: Head) -> None:
    sleeper = ["python", "-u", "-c", "import time; print('asleep', 'now'); time.sleep(300)"]
    command = ["bin/submit", "--address", head.address, "--", *sleeper]
    waiting = subprocess.Popen(command, cwd=ROOT, env=head.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert waiting.stdout is not None
        seen = ""
        while "asleep now" not in seen:
            line = waiting.stdout.readline()
            assert line, f"bin/submit ended with {waiting.wait(timeout=30)}: {seen}"
            seen += line
        waiting.send_signal(signal.SIGINT)
        seen += waiting.communicate(timeout=30)[0]
    finally:
        waiting.kill()
        waiting.wait(timeout=30)
    job = job_id_of(seen)
    assert waiting.returncode == 130, seen
    assert f"ray job stop --address {head.address} {job}" in seen
    assert "RUNNING" in ray_job(head, "status", job)
    ray_job(head, "stop", job)
    assert "was stopped" in ray_job(head, "status", job)


def test_an_impatient_wait_says_that_the_job_goes_on(head: Head) -> None:
    done = submit(head, "--timeout", "3", "--", "python", "-c", "import time; time.sleep(300)")
    job = job_id_of(done.stdout)
    assert done.returncode not in (0, 130), done.stdout + done.stderr
    assert "goes on without this wait" in done.stderr
    assert "Traceback" not in done.stderr
    ray_job(head, "stop", job)


def test_no_wait_returns_as_soon_as_the_job_is_accepted(head: Head) -> None:
    done = submit(head, "--no-wait", "--", "python", "-c", "import time; time.sleep(300)")
    assert done.returncode == 0, done.stdout + done.stderr
    job = job_id_of(done.stdout)
    status = ray_job(head, "status", job)
    assert "RUNNING" in status or "PENDING" in status
    ray_job(head, "stop", job)


def test_what_cannot_be_submitted_is_one_sentence(tmp_path: Path) -> None:
    far = Head("http://192.0.2.77:8265", environment_of(secrets.token_hex(32)))
    done = submit(far)
    assert done.returncode == 2
    assert "with an absolute output_dir" in done.stderr
    done = submit(far, "--working-dir", str(tmp_path / "absent"), "--", "true")
    assert done.returncode == 2
    assert "absent is not a directory" in done.stderr


def test_no_head_is_one_sentence() -> None:
    nobody = Head(f"http://127.0.0.1:{free_ports(1)[0]}", environment_of(secrets.token_hex(32)))
    begun = time.monotonic()
    done = submit(nobody, "--", "true")
    assert done.returncode == 2
    assert "No Ray job server answered" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 30


def test_a_head_that_never_answers_is_one_sentence_too() -> None:
    """A listener that accepts and then stays silent, as a hung head does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = Head(f"http://127.0.0.1:{silent.getsockname()[1]}", environment_of(secrets.token_hex(32)))
        begun = time.monotonic()
        done = submit(hung, "--", "true")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "No Ray job server answered" in done.stderr
    assert time.monotonic() - begun < 40
