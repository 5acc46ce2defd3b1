"""The workers of a run over its updates, and what happened beside them: drawn where something did, told with its clock."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from report_lab import SILENT, write_ppo
from test_write import ATTACK, page_of

from rayrlhf.report import worker_figures
from rayrlhf.report.data import read_run
from rayrlhf.report.drawing import Drawn, Panel
from rayrlhf.report.worker_figures import workers
from rayrlhf.telemetry.events import Event, EventLog
from rayrlhf.telemetry.sinks import MetricsWriter

BEGUN = 1_800_000_000.0
UPDATE_SECONDS = 10.0


def write_run(run_dir: Path, counts: list[int], events: Sequence[Event] = ()) -> None:
    """A ppo stage of one update every ten seconds, after each of which so many rollout workers serve, and one scorer."""
    writer = MetricsWriter(run_dir, SILENT)
    writer.log("ppo", 0, {"eval/score": 0.0})
    for step, count in enumerate(counts, 1):
        writer.log("ppo", step, {"perf/workers_rollout": float(count), "perf/workers_scoring": 1.0})
    writer.close()
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"time": at(row["step"])}) + "\n" for row in rows))
    log = EventLog(run_dir, listeners=[])
    for event in events:
        log.tell(event)


def at(update: float) -> float:
    return BEGUN + UPDATE_SECONDS * update


def clock(update: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at(update)))


def event(update: float, kind: Any = "death", text: str = "It died.", **facts: Any) -> Event:
    return Event(kind=kind, text=text, time=at(update), **facts)


def figure_of(run_dir: Path) -> Drawn:
    drawn = workers(read_run(run_dir))
    assert drawn is not None
    return drawn


def places(svg: str) -> dict[str, float]:
    """Where on the page each told event stands."""
    found = re.findall(r"<g><title>([^<]*)</title>.*?<use [^>]*x=\"([\d.]+)\"", svg, flags=re.DOTALL)
    return {told: float(x) for told, x in found}


def test_events_are_drawn_by_kind_and_told_in_a_table(tmp_path: Path) -> None:
    events = [
        event(2.5, "death", "rollout worker 0 died.", role="rollout", number=0),
        event(2.5, "loss", "Its samples are drawn again."),
        event(3.5, "replacement", "rollout worker 2 serves.", role="rollout", number=2),
        event(3.6, "wait", "Waiting for a place.", role="rollout", number=3),
        event(4.0, "spill", "The object store overflows."),
    ]
    write_run(tmp_path, [2, 2, 1, 2, 2], events)
    page = page_of(tmp_path)
    assert {"Workers over time", "What happened"} <= set(page.titles)
    for kind in ("death", "drawn again", "replacement", "store overflows", "rollout workers", "scoring workers"):
        assert re.search(rf"<text[^>]*>{kind}</text>", page.source), kind
    told = {f"{clock((e.time - BEGUN) / UPDATE_SECONDS)} {e.text}" for e in events if e.kind != "wait"}
    assert places(page.source).keys() == told
    assert f"{clock(2.5)} rollout 0 rollout worker 0 died." in page.words
    assert f"{clock(2.5)} run Its samples are drawn again." in page.words
    assert f"{clock(3.6)} rollout 3 Waiting for a place." in page.words
    assert "moment-" not in page.source


def test_an_event_stands_where_its_clock_lies_among_the_updates(tmp_path: Path) -> None:
    events = [event(update, text=f"at {update}") for update in (0.0, 1.0, 2.5, 4.0, 9.0)]
    write_run(tmp_path, [2, 2, 2, 2], events)
    found = {told.rpartition(" ")[2]: x for told, x in places(figure_of(tmp_path).svg).items()}
    width = (found["4.0"] - found["0.0"]) / 4
    assert width > 10
    assert found["1.0"] - found["0.0"] == pytest.approx(width, abs=0.01)
    assert found["2.5"] - found["0.0"] == pytest.approx(2.5 * width, abs=0.01)
    assert found["9.0"] == found["4.0"]  # after the last update


def test_nothing_is_drawn_of_workers_that_stayed(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 2, 2])
    page = page_of(tmp_path)
    assert not {"Workers over time", "What happened"} & set(page.titles)


def test_a_run_without_counts_and_events_has_neither(tmp_path: Path) -> None:
    write_ppo(tmp_path, [(0, -0.5, None, 0.0), (5, 1.0, None, 2.0)], samples=False)
    page = page_of(tmp_path)
    assert not {"Workers over time", "What happened"} & set(page.titles)


def test_a_count_that_changes_is_drawn_without_events(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 1, 1, 1, 3])
    page = page_of(tmp_path)
    assert "Workers over time" in page.titles
    assert "What happened" not in page.titles


def test_a_long_run_keeps_the_change_of_one_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves of many points are averaged in groups; a count is not."""
    write_run(tmp_path, [2] * 500 + [1] + [2] * 499)
    drawn: list[Panel] = []
    monkeypatch.setattr(worker_figures, "draw_lanes", lambda panels, lanes, **_: drawn.extend(panels))
    workers(read_run(tmp_path))
    (rollout,), (scoring,) = (panel.curves for panel in drawn)
    assert list(zip(rollout.x, rollout.y, strict=True)) == [(1, 2), (501, 1), (502, 2), (1000, 2)]
    assert list(zip(scoring.x, scoring.y, strict=True)) == [(1, 1), (1000, 1)]


def test_events_before_the_first_row_are_told_and_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 2], [event(-5.0, text="early"), event(1.0, text="later")])
    drawn = figure_of(tmp_path)
    assert [told.rpartition(" ")[2] for told in places(drawn.svg)] == ["later"]
    assert "1 from before the first logged row are not drawn." in drawn.caption
    assert f"{clock(-5.0)} run early" in page_of(tmp_path).words


def test_a_run_that_ends_before_its_first_row_tells_what_happened(tmp_path: Path) -> None:
    EventLog(tmp_path, listeners=[]).tell(event(0.0))
    page = page_of(tmp_path)
    assert "What happened" in page.titles
    assert "Workers over time" not in page.titles


def test_the_table_is_of_the_newest_and_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 2, 2], [event(2.0 + i / 1000, text=f"event-{i}-") for i in range(73)])
    page = page_of(tmp_path)
    table = page.words.split("What happened")[1]
    assert "The newest 50 of 73 events; events.jsonl has the 23 before them too." in table
    assert [int(i) for i in re.findall(r"event-(\d+)-", table)] == list(range(23, 73))
    assert len(places(page.source)) == 73


def test_the_figure_says_how_many_events_it_leaves_out(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 2, 2], [event(2.0 + i / 1000, text=f"event-{i}-") for i in range(310)])
    drawn = figure_of(tmp_path)
    assert "The newest 300 of 310 are drawn." in drawn.caption
    assert len(places(drawn.svg)) == 300


def test_texts_of_events_are_shown_and_never_run(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 2], [event(1.0, text=ATTACK)])
    assert page_of(tmp_path).words.count(ATTACK) == 2  # pointing at the dot, and in the table
