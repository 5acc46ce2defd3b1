"""The status of a run under way, as a terminal shows it."""

import time
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rayrlhf.telemetry.console import format_duration

_STALE_SECONDS = 15.0


def status_page(status: dict[str, Any], *, now: float) -> list[RenderableType]:
    """What `rayrlhf status` shows: where the run is, its workers, its queues, who waits for whom, what happened last."""
    if not status:
        return [Text("The run has just begun: nothing is known of it yet.")]
    page: list[RenderableType] = [Text(_headline(status, now), style="bold")]
    if workers := status.get("workers"):
        page.append(_workers(workers))
    page += [Text(line) for line in _lines(status)]
    page += [Text(f"{_clock(event['time'])} {event['text']}", style="dim") for event in status.get("events", [])]
    return page


def _headline(status: dict[str, Any], now: float) -> str:
    parts = [status["run"]]
    if "stage" in status:
        parts.append(f"{status['stage']} {status['step']}/{status['total']}")
    if "version" in status:
        parts.append(f"version {status['version']}")
    if status.get("eta_seconds") is not None:
        parts.append(f"{format_duration(status['eta_seconds'])} left")
    if status.get("stopping"):
        parts.append("stopping")
    if now - status["time"] > _STALE_SECONDS:
        parts.append(f"as it was {format_duration(now - status['time'])} ago")
    return "  ".join(parts)


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("worker", "state", "for", "version", "tok/s", "in work", "process", "node"):
        justify: Literal["left", "right"] = "right" if column in ("for", "version", "tok/s", "in work") else "left"
        table.add_column(column, justify=justify, no_wrap=column != "state")
    for one in workers:
        speed = one.get("tokens_per_second")
        table.add_row(
            f"{one['role']} {one['number']}",
            one["state"],
            format_duration(one["seconds"]),
            _or_blank(one.get("version")),
            "" if speed is None else f"{speed:,.0f}",
            _or_blank(one.get("in_work")),
            _or_blank(one.get("pid")),
            _or_blank((one.get("node") or "")[:8]),
        )
    return table


def _lines(status: dict[str, Any]) -> list[str]:
    lines = []
    if queues := status.get("queues"):
        lines.append("groups: " + ", ".join(f"{count} {name}" for name, count in queues.items()))
    if "staleness" in status:
        lines.append(
            f"staleness: {status['staleness']:.0f} of at most {status['max_staleness']}; "
            f"replaced so far: " + ", ".join(f"{role} {count}" for role, count in status["restarts"].items())
        )
    return lines + status.get("waits", [])


def _or_blank(value: Any) -> str:
    return "" if value is None else str(value)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
