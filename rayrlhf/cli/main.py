"""The `rayrlhf` command. Heavy imports wait until a command needs them, so that --help is instant."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rayrlhf.errors import RayrlhfError

app = typer.Typer(
    name="rayrlhf",
    help="RLHF that starts on a laptop and grows to a cluster without changing a line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file, such as configs/quickstart.yaml.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, applied in order.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved run, start nothing.")]


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Run the stages the configuration names, in order: sft, reward, ppo."""
    _stages(config, overrides, None, resume=resume, dry_run=dry_run)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Run supervised fine-tuning alone."""
    _stages(config, overrides, "sft", resume=resume)


@app.command()
def reward(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train the reward model alone."""
    _stages(config, overrides, "reward", resume=resume)


@app.command()
def ppo(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Run PPO alone, on the run's own SFT policy and reward model."""
    _stages(config, overrides, "ppo", resume=resume)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A configuration to check the machine against.")] = None,
    overrides: Overrides = None,
) -> None:
    """Say what this machine or cluster lacks, for a configuration where one is given."""
    from rayrlhf.cli.doctor import diagnose

    with _clear_errors():
        lacking = diagnose(config, overrides or [])
    raise typer.Exit(2 if lacking else 0)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.")]) -> None:
    """Write report.html of a run, finished or not."""
    from rayrlhf.errors import ConfigError
    from rayrlhf.telemetry.report import write_report

    with _clear_errors():
        if not (run_dir / "metrics.jsonl").exists():
            raise ConfigError(f"{run_dir} is not a run's folder: it holds no metrics.jsonl.")
        typer.echo(str(write_report(run_dir)))


def _stages(
    config: Path, overrides: list[str] | None, only: str | None, *, resume: bool, dry_run: bool = False
) -> None:
    from rayrlhf.config import load_config

    with _clear_errors():
        loaded = load_config(config, overrides or [])
        _quiet_libraries()
        if dry_run:
            from rayrlhf.cli.doctor import show_dry_run

            lacking = show_dry_run(loaded)
            raise typer.Exit(2 if lacking else 0)
        from rayrlhf.pipelines.run import run_stages

        run_stages(loaded, resume=resume, only=only)  # type: ignore[arg-type]


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


class _clear_errors:
    """Ends the command with one sentence and the error's exit status; anything unforeseen keeps its traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RayrlhfError):
            print(f"rayrlhf: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_status) from None
        if isinstance(error, KeyboardInterrupt):
            print("rayrlhf: interrupted; go on with the same command and --resume.", file=sys.stderr)
            raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
