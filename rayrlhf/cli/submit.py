"""Submit a job to a Ray cluster, follow it by its status, and end with its result."""

import os
import re
import shlex
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
import yaml

from rayrlhf.errors import ConfigError, RayrlhfError, ResourceError, WorkerError

_POLL_SECONDS = 1.0
_REACH_SECONDS = 20.0
_SILENCE_SECONDS = 60.0
"""How long a head may not answer while its job is followed."""
_MODULE = "-m rayrlhf.cli.main"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True})
def main(
    entrypoint: Annotated[
        list[str] | None,
        typer.Argument(help="The job's command, after --. Its output_dir is an absolute path that outlives the job."),
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="The cluster's job server.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[Path, typer.Option(help="The folder that travels to the cluster.")] = Path(),
    runtime_env: Annotated[Path, typer.Option(help="Excludes and environment of the job.")] = Path(
        "cluster/runtime_env.yaml"
    ),
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the job; 0 waits without end.")] = 0.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as the job is accepted.")] = False,
) -> None:
    """Submit a command and exit with its status. Ctrl-C stops waiting, not the job.

    Without a command it is the quickstart, with its output in runs/ of this folder, where the head is on this machine.
    """
    try:
        command = entrypoint or _quickstart(address)
        status = submit(
            command,
            address=address,
            working_dir=working_dir,
            runtime_env=runtime_env,
            timeout=timeout,
            wait=not no_wait,
        )
    except RayrlhfError as error:
        print(f"rayrlhf: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from None
    raise typer.Exit(status)


def submit(
    command: list[str], *, address: str, working_dir: Path, runtime_env: Path, timeout: float, wait: bool
) -> int:
    """Submit and follow; the exit status of the job's command, 0 only if it succeeded."""
    if not working_dir.is_dir():
        raise ConfigError(f"--working-dir {working_dir} is not a directory.")
    environment = _read_environment(runtime_env)
    client = _connect(address)
    print(f"package: {_package_bytes(working_dir, environment) / 2**20:.1f} MiB from {working_dir.resolve()}")
    try:
        job_id = client.submit_job(
            entrypoint=_portable(command, local=_on_this_machine(address)),
            runtime_env={**environment, "working_dir": str(working_dir.resolve())},
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ResourceError(f"The job was not accepted at {address}: {told}.") from error
    print(f"job: {job_id} on {address}", flush=True)
    if not wait:
        return 0
    try:
        return _follow(client, job_id, timeout=timeout)
    except KeyboardInterrupt:
        print(f"\nno longer waiting; the job goes on. Stop it with: ray job stop --address {address} {job_id}")
        return 130


def _quickstart(address: str) -> list[str]:
    if not _on_this_machine(address):
        raise ConfigError(
            "Give the job's command, with an absolute output_dir on storage that its nodes share: bin/submit -- rayrlhf run "
            "configs/quickstart.yaml output_dir=/shared/runs."
        )
    return ["rayrlhf", "run", "configs/quickstart.yaml", f"output_dir={Path('runs').absolute()}"]


def _portable(command: list[str], *, local: bool) -> str:
    """`rayrlhf` by module, so that the code that travelled with the job is the code that runs.

    A head on this machine is given this Python; elsewhere the nodes' own `python` is the one with the packages.
    """
    if command[0] == "rayrlhf":
        python = shlex.quote(sys.executable) if local else "python"
        return f"{python} {_MODULE} {shlex.join(command[1:])}"
    return shlex.join(command)


def _on_this_machine(address: str) -> bool:
    return urlsplit(_url(address)).hostname in ("127.0.0.1", "localhost", "::1")


def _url(address: str) -> str:
    return address if address.startswith("http") else f"http://{address}"


def _connect(address: str) -> Any:
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    url = _url(address)
    deadline = time.monotonic() + _REACH_SECONDS
    try:
        requests.get(f"{url}/api/version", timeout=_REACH_SECONDS / 2)
        return JobSubmissionClient(url)
    except AuthenticationError:
        raise ResourceError(
            f"The Ray job server at {address} refused this token: set RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's."
        ) from None
    except (requests.RequestException, ConnectionError, RuntimeError) as error:
        waited = _REACH_SECONDS - max(0.0, deadline - time.monotonic())
        raise ResourceError(
            f"No Ray job server answered at {address} in {waited:.0f} s ({type(error).__name__}): start a head with "
            f"`ray start --head`, or give another --address, that of the job server (8265 unless changed) and not of the port "
            f"that nodes join by (6379)."
        ) from None


def _follow(client: Any, job_id: str, *, timeout: float) -> int:
    """Print new log lines until the status is final. The status decides: a log stream can end before its job."""
    import requests

    deadline = time.monotonic() + timeout if timeout else float("inf")
    printed = 0
    answered = time.monotonic()
    while True:
        try:
            info = client.get_job_info(job_id)
            logs = client.get_job_logs(job_id)
        except (requests.RequestException, RuntimeError) as error:
            silent = time.monotonic() - answered
            if silent > _SILENCE_SECONDS:
                raise WorkerError(
                    f"The Ray head has not answered for {silent:.0f} s ({type(error).__name__}): the job {job_id} may go on."
                ) from None
            time.sleep(_POLL_SECONDS)
            continue
        answered = time.monotonic()
        final = info.status.is_terminal()
        print(logs[printed:], end="", flush=True)
        printed = len(logs)
        if final:
            return _exit_status(info)
        if time.monotonic() > deadline:
            raise WorkerError(
                f"The job {job_id} was still {info.status} after {timeout:.0f} s; it goes on without this wait."
            )
        time.sleep(_POLL_SECONDS)


def _exit_status(info: Any) -> int:
    print(f"job: {info.status}")
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code:
        return int(info.driver_exit_code)
    found = re.search(r"exit code (\d+)", info.message or "")
    print(f"rayrlhf: the job ended {info.status}: {info.message}", file=sys.stderr)
    return int(found.group(1)) if found and int(found.group(1)) else 1


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The runtime environment {path} cannot be read: {error}.") from None
    return dict(loaded or {})


def _package_bytes(working_dir: Path, environment: dict[str, Any]) -> int:
    """Size of what travels, before packing; excluded names are left out at any depth."""
    skipped = {str(pattern).removeprefix("**/") for pattern in environment.get("excludes", [])}
    total = 0
    for folder, folders, files in os.walk(working_dir):
        folders[:] = [name for name in folders if name not in skipped]
        kept = [name for name in files if not any(fnmatch(name, pattern) for pattern in skipped)]
        total += sum((Path(folder) / name).stat().st_size for name in kept)
    return total


if __name__ == "__main__":
    app()
