"""The workers of a run over its updates, and what happened beside them."""

import time
from collections.abc import Sequence

import numpy as np

from rayrlhf.report.data import Row, RunRecord
from rayrlhf.report.drawing import BLUE, GOLD, GREEN, GREY, INK, RED, VIOLET, Curve, Drawn, Lane, Panel, draw_lanes
from rayrlhf.report.page import table

_MOST_MARKED = 300
"""Events in the figure, so that a page stays small."""

_MOST_TOLD = 50
"""Events in the table."""

_LANES = (
    ("death", "death", RED, "X"),
    ("replacement", "replacement", GREEN, "^"),
    ("scale", "scaling", BLUE, "D"),
    ("swap", "swap", VIOLET, "s"),
    ("loss", "drawn again", GOLD, "v"),
    ("spill", "store overflows", GREY, "P"),
    ("guard", "guard", INK, "P"),
    ("stop", "stop", GREY, "o"),
)
"""Kinds of events that the figure marks: what each is called there, its colour and its marker."""


def workers(record: RunRecord) -> Drawn | None:
    """Serving workers after each update, and when something happened to them; None where nothing ever did."""
    panels = [
        panel
        for role, colour in (("rollout", BLUE), ("scoring", GOLD))
        if (panel := _serving(record, role, colour)) is not None
    ]
    since = _first_time(record)
    wanted = [event for event in record.events if event["kind"] in {kind for kind, *_ in _LANES}]
    marked = [event for event in wanted if since is not None and event["time"] >= since]
    if not marked and all(np.ptp(curve.y) == 0.0 for panel in panels for curve in panel.curves):
        return None
    return Drawn(
        "Workers over time",
        "Rollout and scoring workers that took work at the end of each update, and what happened in between, placed by "
        "its clock; pointing at a dot tells it." + _left_out(len(wanted), len(marked)),
        draw_lanes(panels, _lanes(record, marked[-_MOST_MARKED:]), xlabel="update"),
    )


def happened(record: RunRecord) -> str:
    """The newest events of the run as a table."""
    told = record.events[-_MOST_TOLD:]
    earlier = len(record.events) - len(told)
    note = f"The newest {len(told)} of {len(record.events):,} events; events.jsonl has the {earlier:,} before them too."
    return table(
        "What happened",
        ("clock", "role", "event"),
        [(_clock(event), _who(event), event["text"]) for event in told],
        note=note if earlier else "",
    )


def _serving(record: RunRecord, role: str, colour: str) -> Panel | None:
    """The counts where they change, and the last."""
    name = f"perf/workers_{role}"
    rows = [(row["step"], row[name]) for row in record.stages.get("ppo", []) if row.get(name) is not None]
    if not rows:
        return None
    counts = np.array(rows, dtype=np.float64)
    changed = np.diff(counts[:, 1], prepend=np.nan) != 0.0
    changed[-1] = True
    curve = Curve(role, colour, counts[changed, 0], counts[changed, 1], "steps")
    return Panel(f"{role} workers", [curve], floor=0.0, whole=True)


def _lanes(record: RunRecord, events: Sequence[Row]) -> list[Lane]:
    lanes = []
    for kind, label, colour, marker in _LANES:
        of_kind = [event for event in events if event["kind"] == kind]
        if of_kind:
            where = _updates(record, [event["time"] for event in of_kind])
            told = [f"{_clock(event)} {event['text']}" for event in of_kind]
            lanes.append(Lane(label, colour, marker, list(zip(where.tolist(), told, strict=True))))
    return lanes


def _updates(record: RunRecord, times: Sequence[float]) -> np.ndarray:
    """Where in the updates these times lie: between two rows by the clock, after the last row at it."""
    rows = np.array([[row["time"], row["step"]] for row in record.stages["ppo"]], dtype=np.float64)
    return np.interp(times, np.maximum.accumulate(rows[:, 0]), rows[:, 1])


def _first_time(record: RunRecord) -> float | None:
    """When the stage logged its first row; where in the updates an event before it lies nobody can tell."""
    return next((row["time"] for row in record.stages.get("ppo", [])), None)


def _left_out(wanted: int, marked: int) -> str:
    told = f" {wanted - marked:,} from before the first logged row are not drawn." if wanted > marked else ""
    return told + (f" The newest {_MOST_MARKED} of {marked:,} are drawn." if marked > _MOST_MARKED else "")


def _who(event: Row) -> str:
    parts = (event.get("role") or "run", event.get("number"))
    return " ".join(str(part) for part in parts if part is not None)


def _clock(event: Row) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
