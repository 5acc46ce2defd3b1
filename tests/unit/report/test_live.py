"""The status of a run under way, as a terminal shows it."""

from typing import Any

from rich.console import Console, Group

from rayrlhf.report.live import status_page


def shown(status: dict[str, Any], now: float = 1000.0) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Group(*status_page(status, now=now)))
    return console.export_text()


STATUS: dict[str, Any] = {
    "run": "quickstart",
    "time": 999.0,
    "stage": "ppo",
    "step": 12,
    "total": 60,
    "version": 12,
    "eta_seconds": 75.0,
    "stopping": False,
    "workers": [
        {"role": "rollout", "number": 3, "state": "serving", "seconds": 61.0, "version": 12, "pid": 77}
        | {"node": "abcdef0123456789", "in_work": 96, "tokens_per_second": 1234.0, "groups": 24},
        {"role": "scoring", "number": 0, "state": "waiting for a place", "seconds": 5.0, "version": None, "pid": None},
    ],
    "queues": {"wait for a worker": 2, "are drawn": 24},
    "staleness": 1.0,
    "max_staleness": 2,
    "restarts": {"rollout": 1, "scoring": 0, "learner": 2},
    "waits": ["the learner waits for the batch of update 13"],
    "events": [{"time": 990.0, "text": "rollout worker 1 died."}],
}


def test_where_a_run_is_and_what_its_workers_do_is_all_there() -> None:
    page = shown(STATUS)
    assert "quickstart  ppo 12/60  version 12  1m15s left" in page
    (line,) = (line for line in page.splitlines() if "rollout 3" in line)
    for figure in ("serving", "1m01s", "12", "1,234", "96", "77", "abcdef01"):
        assert figure in line
    assert "scoring 0" in page
    assert "waiting for a place" in page
    assert "groups: 2 wait for a worker, 24 are drawn" in page
    assert "staleness: 1 of at most 2; replaced so far: rollout 1, scoring 0, learner 2" in page
    assert "the learner waits for the batch of update 13" in page
    assert "rollout worker 1 died." in page


def test_a_status_that_is_old_says_so_and_a_stage_without_workers_has_no_table() -> None:
    page = shown({"run": "r", "time": 900.0, "stage": "sft", "step": 1, "total": 9, "events": []})
    assert "r  sft 1/9  as it was 1m40s ago" in page
    assert "worker" not in page
    assert "just begun" in shown({})
