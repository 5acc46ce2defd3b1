"""The terminal: tables, notes, and a live progress line where a person is watching."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from rayrlhf.telemetry.events import Event

_SHOWN = {
    "policy/nll": ("loss", "{:.3f}"),
    "reward/loss": ("loss", "{:.3f}"),
    "reward/accuracy": ("accuracy", "{:.3f}"),
    "reward/pass_rate": ("right", "{:.0%}"),
    "reward/score": ("score", "{:.2f}"),
    "reward/gold": ("gold", "{:.3f}"),
    "kl/reference": ("kl", "{:z.2f}"),
}
"""The figures of a progress line, by metric name."""

_EVALUATED = {
    "eval/nll": ("loss", "{:.3f}"),
    "eval/loss": ("loss", "{:.3f}"),
    "eval/accuracy": ("accuracy", "{:.3f}"),
    "eval/pass_rate": ("right", "{:.1%}"),
    "eval/score": ("score", "{:.2f}"),
    "eval/gold": ("gold", "{:.3f}"),
    "eval/kl": ("KL", "{:z.2f} nats"),
}
"""The figures of an evaluation's line, by metric name."""

_SECONDS_BETWEEN_LINES = 10.0
_SPEED_STEPS = 10
"""Steps the shown speed is taken over: a step with an evaluation or a checkpoint is much slower than the others."""


def format_duration(seconds: float) -> str:
    """3 s, 2m05s or 1h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_bytes(count: float) -> str:
    """Binary units, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def evaluation_line(metrics: Mapping[str, float]) -> str:
    """What the held-out answers say, in one line; where they are right or wrong, how many are, with the interval."""
    told = _figures(metrics, _EVALUATED)
    low, high = metrics.get("eval/pass_rate_low"), metrics.get("eval/pass_rate_high")
    if low is not None and high is not None:
        told["right"] += f" ({low:.1%} to {high:.1%})"
    return "evaluation: " + ", ".join(f"{name} {value}" for name, value in told.items())


def _figures(metrics: Mapping[str, float], shown: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The figures to show by their short names; the score of right and wrong answers is their share, and told once."""
    area = {name.split("/")[0] for name in metrics if name.endswith("/pass_rate")}
    hidden = {f"{name}/score" for name in area}
    hidden |= {f"{name}/gold" for name in area if metrics.get(f"{name}/gold") == metrics.get(f"{name}/score")}
    return {
        name: shape.format(metrics[key]) for key, (name, shape) in shown.items() if key in metrics and key not in hidden
    }


class Progress:
    """The progress of one stage: a live bar on a terminal, a plain line every few seconds elsewhere.

    Evaluations and checkpoints are a line of their own in both.
    """

    def __init__(self, console: RichConsole, stage: str, total: int) -> None:
        self._console = console
        self._stage = stage
        self._total = total
        self._started = time.monotonic()
        self._first: int | None = None
        self._told = float("-inf")
        self._live: RichProgress | None = None
        self._speeds: deque[tuple[float, float]] = deque(maxlen=_SPEED_STEPS)
        """Tokens and seconds of the newest steps."""
        if console.is_terminal:
            self._live = RichProgress(
                TextColumn("[bold]{task.description:>6}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TextColumn("elapsed"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task(stage, total=total, figures="")

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show that `step` steps are done, with their figures."""
        # Of this step alone: a figure that is absent now must not be read as this step's.
        shown = _figures(metrics, _SHOWN) | self._speed(metrics)
        if any(key in metrics for key in _EVALUATED):
            self._tell(step, evaluation_line(metrics))
        figures = "  ".join(f"{name} {value}" for name, value in shown.items())
        if self._live is not None:
            self._live.update(self._task, completed=step, figures=figures)
            return
        if self._first is None:
            self._first = step - 1
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._told = now
        remaining = (now - self._started) / max(1, step - self._first) * (self._total - step)
        self._tell(step, f"{figures}  eta {format_duration(remaining)}")

    def _tell(self, step: int, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {self._stage} {step}/{self._total}  {text}"
        self._console.print(line, highlight=False, markup=False)

    def _speed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Tokens per second over the newest steps together."""
        if "perf/tokens_per_second" in metrics:
            seconds = metrics.get("time/step", 1.0)
            self._speeds.append((metrics["perf/tokens_per_second"] * seconds, seconds))
        if not self._speeds:
            return {}
        tokens, seconds = (sum(column) for column in zip(*self._speeds, strict=True))
        return {"tok/s": f"{tokens / seconds:,.0f}"}


class Console:
    """What a command prints; plain where the output is no terminal."""

    def __init__(self) -> None:
        self._out = RichConsole(file=sys.stdout, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, stage: str, total: int) -> Iterator[Progress]:
        """Follow a stage of `total` steps."""
        with Progress(self._out, stage, total) as progress:
            yield progress

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._out.print(table, soft_wrap=False)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._out.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Something to look at."""
        self._out.print(f"warning: {text}", style="yellow", highlight=False, markup=False)

    def event(self, event: Event) -> None:
        """What happened to the run, with a clock."""
        style = "yellow" if event.kind in ("death", "loss", "spill", "guard", "wait") else None
        self._out.print(f"{time.strftime('%H:%M:%S')} {event.text}", style=style, highlight=False, markup=False)

    def error(self, text: str) -> None:
        """Something that is wrong."""
        self._out.print(f"lacking: {text}", style="red", highlight=False, markup=False)
