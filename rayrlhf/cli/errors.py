"""How a command ends: with one sentence and the error's exit status."""

import os
import sys

import typer

from rayrlhf.errors import RayrlhfError


class clear_errors:
    """Ends the command with one sentence and the error's exit status; anything unforeseen keeps its traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RayrlhfError):
            print(f"rayrlhf: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_status) from None
        if isinstance(error, KeyboardInterrupt):
            print(f"rayrlhf: {str(error) or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(130) from None


def quiet_libraries() -> None:
    """Keep the libraries' own notes out of a command's output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
