"""failure.json: what ended a run, how far it was, and the command that goes on with it."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

from rayrlhf.config import RunConfig
from rayrlhf.errors import RayrlhfError, StoppedError, StorageError
from rayrlhf.experience.spool import ExperienceSpool
from rayrlhf.files import write_json
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.folder import RunFolder, tracks

FAILURE_FILE = "failure.json"


def resuming_command(arguments: Sequence[str] | None) -> str:
    """The command that goes on with a run that was started with `arguments`."""
    if arguments is None:
        return "the same command with --resume"
    return shlex.join(["rayrlhf", *(part for part in arguments if part != "--resume"), "--resume"])


def saved_so_far(folder: RunFolder, config: RunConfig) -> tuple[dict[str, str], bool]:
    """The newest checkpoint of each track, and whether there is anything at all for --resume to go on with."""
    newest = {}
    for stage in config.stages:
        for track in tracks(config, stage):
            checkpoint, _ = CheckpointStore(folder.checkpoints(track), keep=config.checkpoint.keep).newest()
            if checkpoint is not None:
                newest[track] = str(checkpoint.directory.relative_to(folder.root))
    spooled = bool(ExperienceSpool(folder.spool).updates(0))
    ended = any(folder.finished(stage) for stage in config.stages)
    return newest, bool(newest) or spooled or ended or any(folder.root.glob("checkpoints/*.trained"))


def record_failure(
    folder: RunFolder,
    config: RunConfig,
    failure: BaseException,
    *,
    stage: str | None,
    step: int | None,
    arguments: Sequence[str] | None,
    worker: dict[str, Any] | None = None,
) -> BaseException:
    """Leave the failure where it can be found after the terminal is gone; answers with it and the remedy in words.

    `worker` is the last process that was lost, if any was. --resume is the remedy only where there is something to resume.
    """
    newest, resumable = saved_so_far(folder, config)
    command = resuming_command(arguments) if resumable else None
    interrupted = isinstance(failure, KeyboardInterrupt)
    message = str(failure).strip() or (
        "Interrupted." if interrupted else f"{type(failure).__name__}, without a message."
    )
    record: dict[str, Any] = {
        "time": time.time(),
        "error": type(failure).__name__,
        "message": message,
        "stage": stage,
        "step": step,
        "worker": worker,
        "checkpoint": newest.get(stage) if stage is not None else None,
        "checkpoints": newest,
        "resume": command,
    }
    with contextlib.suppress(StorageError):  # on a full disk the failure itself is still the one to tell
        write_json(folder.root / FAILURE_FILE, record)
    if interrupted:
        told = f"go on with: {command}" if command else "nothing was saved yet, so start it again"
        return KeyboardInterrupt(f"interrupted; {told}")
    if isinstance(failure, RayrlhfError) and failure.exit_status in (1, StoppedError.exit_status) and command:
        return type(failure)(f"{message} Go on with: {command}")
    return failure
