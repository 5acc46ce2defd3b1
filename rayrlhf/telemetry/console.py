"""The terminal: tables, notes, and a live progress line where a person is watching."""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

_SHOWN = {
    "policy/nll": ("loss", "{:.3f}"),
    "eval/nll": ("held-out", "{:.3f}"),
    "reward/loss": ("loss", "{:.3f}"),
    "reward/accuracy": ("accuracy", "{:.3f}"),
    "eval/accuracy": ("held-out", "{:.3f}"),
    "reward/score": ("score", "{:.2f}"),
    "reward/gold": ("gold", "{:.3f}"),
    "kl/reference": ("kl", "{:.2f}"),
    "perf/tokens_per_second": ("tok/s", "{:,.0f}"),
}
"""The figures of a progress line, by metric name."""

_SECONDS_BETWEEN_LINES = 10.0


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


class Progress:
    """The progress of one stage: a live bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, console: RichConsole, stage: str, total: int) -> None:
        self._console = console
        self._stage = stage
        self._total = total
        self._started = time.monotonic()
        self._first: int | None = None
        self._told = float("-inf")
        self._live: RichProgress | None = None
        self._figures: dict[str, str] = {}
        if console.is_terminal:
            self._live = RichProgress(
                TextColumn("[bold]{task.description:>6}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
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
        # A held-out figure stands until the next; a training figure that is absent now must not be read as this step's.
        kept = {key: text for key, text in self._figures.items() if key.startswith("eval/")}
        self._figures = kept | {key: shape.format(metrics[key]) for key, (_, shape) in _SHOWN.items() if key in metrics}
        shown = [(name, self._figures[key]) for key, (name, _) in _SHOWN.items() if key in self._figures]
        figures = "  ".join(f"{name} {text}" for name, text in shown)
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
        self._console.print(
            f"{self._stage} {step}/{self._total}  {figures}  eta {format_duration(remaining)}", highlight=False
        )


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

    def error(self, text: str) -> None:
        """Something that is wrong."""
        self._out.print(f"lacking: {text}", style="red", highlight=False, markup=False)
