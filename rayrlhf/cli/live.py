"""Commands that act on a run under way: status, scale, stop."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayrlhf.cli.errors import clear_errors, quiet_libraries

if TYPE_CHECKING:
    from rayrlhf.actors.control import Visitor

Run = Annotated[str, typer.Argument(help="A run's folder, or its name.", show_default=False)]
Address = Annotated[
    str | None, typer.Option(help="The cluster it runs on, HOST:PORT; not needed on the machine that started it.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Show it again and again, until the run ends.")]
OutputDir = Annotated[str, typer.Option(help="Where runs lie, for a run given by its name.")]


def status(run: Run, watch: Watch = False, address: Address = None, output_dir: OutputDir = "runs") -> None:
    """Say how a run under way does: stage, step, workers, queues, who waits for whom."""
    with clear_errors(), _visit(run, address, output_dir) as visitor:
        from rich.console import Console, Group
        from rich.live import Live

        from rayrlhf.report.live import status_page

        console = Console()
        if not watch:
            console.print(Group(*status_page(visitor.status(), now=time.time())))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Group(*status_page(visitor.status(), now=time.time())), refresh=True)
                time.sleep(1.0)


def scale(
    run: Run,
    rollout_workers: Annotated[int | None, typer.Option(help="As many as there are to be.")] = None,
    scoring_workers: Annotated[int | None, typer.Option(help="As many as there are to be.")] = None,
    address: Address = None,
    output_dir: OutputDir = "runs",
) -> None:
    """Change the number of workers while the run goes on."""
    from rayrlhf.errors import ConfigError

    with clear_errors():
        sizes = {"rollout": rollout_workers, "scoring": scoring_workers}
        wanted = {role: size for role, size in sizes.items() if size is not None}
        if not wanted:
            raise ConfigError("scale needs --rollout-workers N, --scoring-workers M, or both.")
        for role, size in wanted.items():
            if size < 1:
                raise ConfigError(f"--{role}-workers {size}: a run needs at least 1.")
        with _visit(run, address, output_dir) as visitor:
            typer.echo(visitor.ask("scale", **wanted))


def swap_reward(
    run: Run,
    directory: Annotated[Path, typer.Argument(help="A reward model, where every node finds it.", show_default=False)],
    term: Annotated[str | None, typer.Option(help="Which of several reward models it replaces, by its name.")] = None,
    address: Address = None,
    output_dir: OutputDir = "runs",
) -> None:
    """Replace a reward model while the run goes on."""
    with clear_errors(), _visit(run, address, output_dir) as visitor:
        typer.echo(visitor.ask("swap", directory=str(directory.absolute()), term=term))


def stop(run: Run, address: Address = None, output_dir: OutputDir = "runs") -> None:
    """End a run after the step in progress, with a checkpoint that --resume goes on from."""
    with clear_errors(), _visit(run, address, output_dir) as visitor:
        typer.echo(visitor.ask("stop"))


@contextmanager
def _visit(run: str, address: str | None, output_dir: str) -> Iterator["Visitor"]:
    """Join the run's cluster for the time of the block."""
    quiet_libraries()
    name, facts = _where(run, output_dir)
    if address is None and not facts:
        from rayrlhf.errors import ConfigError

        raise ConfigError(
            f"{run} is not under way here: there is no run.json in {_folder(run, output_dir)}. A run on another machine "
            f"is found by its cluster's address: --address HOST:PORT."
        )
    # Ray reads it when it is imported. A cluster that it starts for one run asks for the token of its user.
    mode = facts.get("auth_mode") if address is None else None
    if mode or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", mode or "token")
    from rayrlhf.actors.cluster import leave, visit
    from rayrlhf.actors.control import Visitor

    visit(address or str(facts["address"]))
    try:
        yield Visitor(name, facts.get("actor"))
    finally:
        leave()


def _where(run: str, output_dir: str) -> tuple[str, dict[str, Any]]:
    path = _folder(run, output_dir) / "run.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    return str(facts.get("run", Path(run).name)), facts


def _folder(run: str, output_dir: str) -> Path:
    return Path(run) if Path(run).is_dir() else Path(output_dir) / run
