"""The `rayrlhf` command. Heavy imports wait until a command needs them, so that --help is instant."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rayrlhf.cli import judge, live
from rayrlhf.cli.errors import clear_errors, quiet_libraries

if TYPE_CHECKING:
    from rayrlhf.config import Stage

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


class _TrainUnlessNamed(TyperGroup):
    """`rayrlhf reward CONFIG` trains; `rayrlhf reward audit DATA` is a command of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["train", *args]
        return super().parse_args(ctx, args)


reward = typer.Typer(cls=_TrainUnlessNamed, no_args_is_help=True, help="Train the reward model alone; audit its data.")
reward.command("audit")(judge.audit)
reward.command("export")(judge.export)
app.add_typer(reward, name="reward")
app.add_typer(judge.evaluate, name="evaluate")
app.command()(judge.score)
app.command()(judge.verify)
app.command()(live.status)
app.command()(live.scale)
app.command("swap-reward")(live.swap_reward)
app.command()(live.stop)


@reward.command("train")
def train_reward(
    config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train the reward model alone."""
    _stages(config, overrides, "reward", resume=resume, dry_run=dry_run)


@reward.command("curve")
def reward_curve(
    config: ConfigPath,
    overrides: Overrides = None,
    share: Annotated[list[float] | None, typer.Option(help="Of the training preferences; may be repeated.")] = None,
    resume: Resume = False,
) -> None:
    """Train on growing shares of the preferences: whether more labels would help."""
    from rayrlhf.config import load_config

    with clear_errors():
        loaded = load_config(config, overrides or [])
        quiet_libraries()
        from rayrlhf.pipelines.curve import learning_curve
        from rayrlhf.report.reward_page import curve_rows, write_curve_page
        from rayrlhf.telemetry.console import Console

        folder, points = learning_curve(loaded, share or [0.125, 0.25, 0.5, 1.0], resume=resume, arguments=sys.argv[1:])
        console = Console()
        console.table("learning curve", ["rows", "accuracy", "balanced", "log-likelihood"], curve_rows(points))
        console.note(f"{write_curve_page(folder / 'learning_curve.html', points, run=loaded.name)}")


@reward.command("refresh")
def refresh_reward(
    run_dir: Annotated[Path, typer.Argument(help="A finished run's folder, such as runs/quickstart.", metavar="RUN")],
    overrides: Overrides = None,
    label: Annotated[
        str | None, typer.Option(help="Who says which is better: gold, judge, or package.module:function.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Of the policy's own responses, from all updates alike.")] = 4000,
    replay: Annotated[float, typer.Option(help="Preferences of before that are mixed in, for each pair.")] = 1.0,
    heldout: Annotated[float, typer.Option(help="Share of the prompts whose pairs judge and do not teach.")] = 0.25,
    resume: Resume = False,
) -> None:
    """Train a run's reward model on with pairs of the policy's own responses; into RUN/refresh/reward_model."""
    with clear_errors():
        quiet_libraries()
        from rayrlhf.pipelines.refresh import Refresh, refresh_reward_model
        from rayrlhf.report.refresh_figures import accuracy_rows
        from rayrlhf.telemetry.console import Console

        asked = Refresh(label=label, pairs=pairs, replay=replay, heldout=heldout)
        found = refresh_reward_model(run_dir, asked, overrides or [], resume=resume, arguments=sys.argv[1:])
        Console().table("pairs in order", ["", "pairs", "before", "after"], accuracy_rows(found))
        Console().note(f"rayrlhf swap-reward RUN {found['model']} has a run under way rewarded by it.")


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Run the stages the configuration names, in order: sft, reward, ppo (PPO, GRPO, RLOO or REINFORCE: ppo.advantage)."""
    _stages(config, overrides, None, resume=resume, dry_run=dry_run)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Run supervised fine-tuning alone."""
    _stages(config, overrides, "sft", resume=resume, dry_run=dry_run)


@app.command()
def ppo(config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Run PPO alone (GRPO, RLOO or REINFORCE by ppo.advantage), on the run's own SFT policy and rewards."""
    _stages(config, overrides, "ppo", resume=resume, dry_run=dry_run)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A configuration to check the machine against.")] = None,
    overrides: Overrides = None,
) -> None:
    """Say what this machine or cluster lacks, for a configuration where one is given."""
    from rayrlhf.cli.doctor import diagnose

    quiet_libraries()
    with clear_errors():
        lacking = diagnose(config, overrides or [])
    raise typer.Exit(2 if lacking else 0)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.")]) -> None:
    """Write report.html of a run, finished or not."""
    from rayrlhf.errors import ConfigError
    from rayrlhf.report.write import write_report

    with clear_errors():
        if not (run_dir / "metrics.jsonl").exists():
            raise ConfigError(f"{run_dir} is not a run's folder: it holds no metrics.jsonl.")
        typer.echo(str(write_report(run_dir)))


def _stages(config: Path, overrides: list[str] | None, only: "Stage | None", *, resume: bool, dry_run: bool) -> None:
    from rayrlhf.config import load_config

    with clear_errors():
        loaded = load_config(config, [*(overrides or []), *([] if only is None else [f"stages=[{only}]"])])
        quiet_libraries()
        if dry_run:
            from rayrlhf.cli.doctor import show_dry_run

            lacking = show_dry_run(loaded, only=only, resume=resume)
            raise typer.Exit(2 if lacking else 0)
        from rayrlhf.pipelines.run import run_stages

        run_stages(loaded, resume=resume, only=only, arguments=sys.argv[1:])


if __name__ == "__main__":
    app()
