"""The figures of a report, each an inline SVG drawn from the rows of metrics.jsonl."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
BLUE, ORANGE, GREEN, RED, GREY = "#3b6fd4", "#d9822b", "#2f9e6e", "#cf4452", "#8a93a3"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#5a6372",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.18,
    "svg.fonttype": "none",
    "svg.hashsalt": "rayrlhf",
    "legend.frameon": False,
    "legend.labelcolor": GREY,
}


def series(rows: Rows, name: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The points of a metric where it and `x` are numbers."""
    points = [(row[x], row[name]) for row in rows if row.get(name) is not None and row.get(x) is not None]
    return [p[0] for p in points], [p[1] for p in points]


def has(rows: Rows, *names: str) -> bool:
    """Whether any row carries all the names."""
    return any(all(row.get(name) is not None for name in names) for row in rows)


def lines(rows: Rows, curves: Sequence[tuple[str, str, str]], *, ylabel: str, log: bool = False) -> str:
    """Curves (metric, label, colour) over steps."""

    def draw(axes: Axes) -> None:
        for name, label, colour in curves:
            xs, ys = series(rows, name)
            if xs:
                marker = "o" if len(xs) < 25 else None
                axes.plot(xs, ys, color=colour, label=label, linewidth=1.8, marker=marker, markersize=3)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        if len(curves) > 1:
            axes.legend()

    return _svg(draw)


def two_scales(rows: Rows, *, x: str, xlabel: str, left: str, right: str | None) -> str:
    """The proxy score on the left axis and the gold reward on the right one, so that their shapes can be compared."""

    def draw(axes: Axes) -> None:
        _scatter_with_trend(axes, *series(rows, left, x), colour=BLUE)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("reward-model score (proxy)", color=BLUE)
        if right is not None:
            other = axes.twinx()
            other.spines["right"].set_visible(True)
            other.grid(visible=False)
            _scatter_with_trend(other, *series(rows, right, x), colour=ORANGE)
            other.set_ylabel("gold reward", color=ORANGE)
            other.set_ylim(0.0, 1.02)

    return _svg(draw)


def stacked_times(rows: Rows, phases: Sequence[tuple[str, str, str]]) -> str:
    """Seconds of each phase of a step, stacked."""

    def draw(axes: Axes) -> None:
        steps = [row["step"] for row in rows]
        heights = [[row.get(name) or 0.0 for row in rows] for name, _, _ in phases]
        axes.stackplot(steps, *heights, labels=[label for _, label, _ in phases], colors=[c for *_, c in phases], alpha=0.85)
        axes.set_xlabel("step")
        axes.set_ylabel("seconds")
        axes.legend(loc="upper right", ncols=2)

    return _svg(draw)


def _scatter_with_trend(axes: Axes, xs: list[float], ys: list[float], *, colour: str) -> None:
    axes.scatter(xs, ys, s=14, color=colour, alpha=0.45, linewidths=0)
    ordered = sorted(zip(xs, ys, strict=True))
    width = max(1, len(ordered) // 8)
    windows = [ordered[max(0, i - width) : i + width + 1] for i in range(len(ordered))]
    axes.plot(
        [sum(x for x, _ in w) / len(w) for w in windows],
        [sum(y for _, y in w) / len(w) for w in windows],
        color=colour,
        linewidth=2.0,
    )


def _svg(draw: Any) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 3.3), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A fixed size would not shrink on a narrow screen; the view box keeps the proportions.
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)
