"""Drawing for the report: panels over a common axis as inline SVG whose colours follow the page's style sheet."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, GRID, CARD = "#1d2431", "#5a6373", "#e3e7ef", "#fffffe"
BLUE, GOLD, GREEN, RED, VIOLET, GREY = "#2a6fdb", "#c08400", "#2f9e6e", "#cf4452", "#7c5cc4", "#8a93a3"
SHADES = ("#a9c7f5", "#6c9fe8", "#2f68c4", "#173f86")
"""From the middle of a distribution to its end."""

_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    GRID: "grid",
    CARD: "card",
    BLUE: "blue",
    GOLD: "gold",
    GREEN: "green",
    RED: "red",
    VIOLET: "violet",
    GREY: "grey",
    **{shade: f"shade-{i}" for i, shade in enumerate(SHADES)},
}
"""The style sheet's variable for each colour: light and dark pages give it different values."""

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": SOFT,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Drawn:
    """One figure of a page."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Curve:
    """One set of points, in the legend if it has a label; `noisy` points are drawn faint under their running mean,
    `marks` as few bold dots, `steps` as a value that holds until the next."""

    label: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    look: Literal["line", "noisy", "marks", "steps"] = "line"
    band: tuple[np.ndarray, np.ndarray] | None = None
    """marks: the lower and the upper end of each point's interval."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    ylabel: str
    curves: Sequence[Curve]
    log: bool = False
    floor: float | None = None
    """Lower end of the value axis, where it has a natural one."""
    level: tuple[float, str] | None = None
    """A horizontal line to compare with, and what it is."""
    whole: bool = False
    """The values are counts."""


@dataclass(frozen=True)
class Lane:
    """Moments of one kind: a row of dots under the panels, and a thin line through them from each."""

    label: str
    colour: str
    marker: str
    moments: Sequence[tuple[float, str]]
    """Where on the common axis, and what to tell of it to whoever points at the dot."""


def draw_panels(panels: Sequence[Panel], *, xlabel: str, tall: bool = False, root_scale: bool = False) -> str:
    """Panels above each other over one axis, as SVG; `root_scale` spaces that axis by square roots."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        explained: set[str] = set()
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel)
            labels = {curve.label for curve in panel.curves if curve.label}
            if len(labels) > 1 and not labels <= explained:
                _legend(axis, len(labels))
            explained |= labels
        if root_scale:
            axes[-1].set_xscale("function", functions=(_root, np.square))
            axes[-1].set_xlim(left=0.0)
        else:
            axes[-1].xaxis.get_major_locator().set_params(integer=True)
        axes[-1].set_xlabel(xlabel)
        figure.align_ylabels()

    return to_svg(draw, height=4.7 if tall else 3.3)


def draw_lanes(panels: Sequence[Panel], lanes: Sequence[Lane], *, xlabel: str) -> str:
    """Panels above each other and the lanes under them, over one axis, as SVG."""

    def draw(figure: Figure) -> None:
        ratios = [*(1.0 for _ in panels), *([0.2 + 0.2 * len(lanes)] if lanes else [])]
        axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axis, panel in zip(axes, panels, strict=False):
            _draw_panel(axis, panel)
            for lane in lanes:
                for x, _ in lane.moments:
                    axis.axvline(x, color=lane.colour, linewidth=1.0, alpha=0.4, zorder=1)
        if lanes:
            _draw_lanes(axes[-1], lanes)
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        axes[-1].set_xlabel(xlabel)
        figure.align_ylabels(axes[: len(panels)])

    svg = to_svg(draw, height=4.7)
    for i, lane in enumerate(lanes):
        for j, (_, told) in enumerate(lane.moments):
            svg = svg.replace(f'<g id="{_moment_id(i, j)}">', f"<g><title>{escape(told)}</title>")
    return svg


def draw_stack(x: np.ndarray, layers: Sequence[tuple[str, str, np.ndarray]], *, xlabel: str, ylabel: str) -> str:
    """Layers (label, colour, heights) as stacked bars, as SVG."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        width = 0.86 * float(np.diff(x).min()) if len(x) > 1 else 0.86
        base = np.zeros_like(x)
        for label, colour, heights in layers:
            axis.bar(x, heights, width=width, bottom=base, color=colour, label=label, linewidth=0)
            base = base + heights
        axis.grid(visible=False, axis="x")
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        _legend(axis, len(layers))

    return to_svg(draw, height=3.3)


def draw_histograms(
    edges: np.ndarray, layers: Sequence[tuple[str, str, np.ndarray]], *, xlabel: str, ylabel: str = "share"
) -> str:
    """Distributions (label, colour, counts) over common bins, each as shares of its own, as SVG."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for label, colour, counts in layers:
            axis.stairs(counts / max(1, counts.sum()), edges, color=colour, label=label, fill=True, alpha=0.35)
            axis.stairs(counts / max(1, counts.sum()), edges, color=colour, linewidth=1.4)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        if len(layers) > 1:
            _legend(axis, len(layers))

    return to_svg(draw, height=3.3)


def draw_scatter(curves: Sequence[Curve], *, xlabel: str, ylabel: str, diagonal: bool = False) -> str:
    """Points as they are, as SVG; `diagonal` adds the line of equality from 0 to 1."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        if diagonal:
            axis.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        for curve in curves:
            if curve.look == "line":
                axis.plot(curve.x, curve.y, color=curve.colour, label=curve.label or None, marker="o", markersize=4)
            else:
                axis.scatter(
                    curve.x, curve.y, s=10, color=curve.colour, alpha=0.4, linewidths=0, label=curve.label or None
                )
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        if len(curves) > 1:
            _legend(axis, len(curves))

    return to_svg(draw, height=3.3)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over about an eighth of the points, fewer at the ends; taken of x and y alike, it stays on their curve."""
    half = len(values) // 16 + 1
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def to_svg(draw: Callable[[Figure], None], *, height: float) -> str:
    """Draw on a fresh figure and return it for use inside a page: no size, no metadata, colours as variables."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "rayrlhf"}):
        figure = Figure(figsize=(6.2, height), layout="constrained", facecolor="none")
        draw(figure)
        for axis in figure.axes:
            axis.set_facecolor("none")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(buffer.getvalue())


def with_own_ids(svg: str, name: str) -> str:
    """The same drawing with ids that no other figure of the page uses."""
    for before in ('id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{name}-")
    return svg


def _draw_panel(axis: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        _draw_curve(axis, curve)
    if panel.log:
        axis.set_yscale("log")
    if panel.floor is not None:
        axis.set_ylim(bottom=panel.floor)
    if panel.level is not None:
        level, meaning = panel.level
        axis.axhline(level, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        axis.annotate(
            meaning,
            (1.0, level),
            xycoords=axis.get_yaxis_transform(),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            color=SOFT,
            fontsize=8.5,
        )
    if panel.whole:
        axis.locator_params(axis="y", integer=True)
    axis.set_ylabel(panel.ylabel)
    axis.margins(x=0.02)


def _draw_lanes(axis: Axes, lanes: Sequence[Lane]) -> None:
    for i, lane in enumerate(lanes):
        for j, (x, _) in enumerate(lane.moments):
            (dot,) = axis.plot(
                [x], [i], color=lane.colour, linestyle="", marker=lane.marker, markersize=7, clip_on=False
            )
            dot.set_gid(_moment_id(i, j))
    axis.set_yticks(range(len(lanes)), [lane.label for lane in lanes])
    axis.set_ylim(len(lanes) - 0.5, -0.5)
    axis.margins(x=0.02)


def _moment_id(lane: int, moment: int) -> str:
    return f"moment-{lane}-{moment}"


def _draw_curve(axis: Axes, curve: Curve) -> None:
    if curve.look == "marks":
        axis.plot(
            curve.x,
            curve.y,
            color=curve.colour,
            label=curve.label or None,
            linestyle="",
            marker="o",
            markersize=7,
            markeredgecolor=CARD,
            markeredgewidth=1.5,
            clip_on=False,
            zorder=4,
        )
        if curve.band is not None:
            axis.vlines(curve.x, *curve.band, color=curve.colour, linewidth=1.4, alpha=0.6, zorder=3)
    elif curve.look == "noisy" and len(curve.x) >= 8:
        axis.scatter(curve.x, curve.y, s=9, color=curve.colour, alpha=0.3, linewidths=0)
        axis.plot(running_mean(curve.x), running_mean(curve.y), color=curve.colour, label=curve.label)
    else:
        marker = "o" if len(curve.x) < 8 else None
        held = "steps-post" if curve.look == "steps" else "default"
        axis.plot(curve.x, curve.y, color=curve.colour, label=curve.label, marker=marker, markersize=4, drawstyle=held)


def _legend(axis: Axes, columns: int) -> None:
    axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(columns, 5), borderaxespad=0.1)


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(values, 0.0))


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'<g id="(?:figure|axes|matplotlib\.axis|xtick|ytick|text|line2d|patch|legend)_\d+">', "<g>", svg)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
