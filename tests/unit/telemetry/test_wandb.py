import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from rayrlhf.telemetry import sinks
from rayrlhf.telemetry.events import Event, EventLog
from rayrlhf.telemetry.sinks import MetricsWriter, WandbRun
from rayrlhf.telemetry.wandb_history import logged_so_far

BLOCK = 32 * 1024


def about(**changes):
    base = {"mode": "offline", "project": "rayrlhf", "entity": None, "name": "tiny", "config": {"seed": 0}}
    return WandbRun(**{**base, **changes})


def records(path):
    """The records of a .wandb file: a 7-byte header, then the log framing of LevelDB."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, pending = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def only_file(run_dir):
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return path


def history(run_dir):
    for record in records(only_file(run_dir)):
        if record.WhichOneof("record_type") == "history":
            yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def write_run(run_dir, run=None):
    writer = MetricsWriter(run_dir, run or about())
    for step in (1, 2, 3):
        writer.log("sft", step, {"policy/nll": 3.0 / step, "eval/nll": 4.0 / step})
    for step in (0, 1):
        writer.log("ppo", step, {"reward/score": 0.5 * step, "policy/entropy": 1.0 + step})
        writer.samples([{"stage": "ppo", "step": step, "response": "hi", "gold": None, "score": 1.0}])
        writer.samples([{"stage": "eval", "step": step, "response": "hi", "gold": 0.5, "score": float("nan")}])
    writer.close()
    return writer


def jsonl(run_dir, name="metrics.jsonl"):
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def expected_history(run_dir):
    return [
        {f"{row['stage']}/{k}": v for k, v in row.items() if "/" in k} | {f"{row['stage']}/step": row["step"]}
        for row in jsonl(run_dir)
    ]


def test_offline_history_equals_metrics_jsonl(tmp_path, capfd):
    write_run(tmp_path)
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history(tmp_path)]

    assert [row for row in rows if not any(key.startswith("samples/") for key in row)] == expected_history(tmp_path)
    tables = [(key.split(".")[0], row["ppo/step"]) for row in rows for key in row if key.endswith("_type")]
    assert tables == [(f"samples/{stage}", step) for step in (0, 1) for stage in ("ppo", "eval")]
    axes = {
        (record.metric.glob_name, record.metric.step_metric)
        for record in records(only_file(tmp_path))
        if record.WhichOneof("record_type") == "metric" and record.metric.glob_name
    }
    assert axes == {(f"{stage}/*", f"{stage}/step") for stage in ("sft", "reward", "ppo")}
    assert capfd.readouterr() == ("", "")


def test_what_happened_is_a_table_of_the_run(tmp_path):
    """Of all starts; without an event there is none."""
    write_run(tmp_path / "calm")
    assert not any(key.startswith("events") for row in history(tmp_path / "calm") for key in row)
    (tmp_path / "run").mkdir()
    log = EventLog(tmp_path / "run", listeners=[])
    log.tell(Event(kind="death", text="It died.", role="rollout", number=3, time=1_800_000_000.0))
    log.tell(Event(kind="stop", text="Asked to stop.", step=2, time=1_800_000_060.5))
    writer = write_run(tmp_path / "run", about(run_id="told0002"))
    assert [row["events._type"] for row in history(tmp_path / "run") if "events._type" in row] == ["table-file"]
    (path,) = tmp_path.glob("run/wandb/offline-run-*/files/media/table/events_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["time", "kind", "role", "number", "step", "text"]
    assert table["data"] == [
        ["2027-01-15T08:00:00+00:00", "death", "rollout", 3, None, "It died."],
        ["2027-01-15T08:01:00+00:00", "stop", None, None, 2, "Asked to stop."],
    ]
    assert logged_so_far(tmp_path / "run", writer.wandb_run_id).rows == {"sft": 3, "ppo": 1}


def test_run_id_is_known_and_goes_on_after_a_restart(tmp_path):
    first = write_run(tmp_path / "a")
    assert only_file(tmp_path / "a").name == f"run-{first.wandb_run_id}.wandb"
    second = write_run(tmp_path / "b", about(run_id=first.wandb_run_id))
    assert second.wandb_run_id == first.wandb_run_id
    assert only_file(tmp_path / "b").name == f"run-{first.wandb_run_id}.wandb"


def test_disabled_writes_no_wandb_files(tmp_path, capfd):
    writer = write_run(tmp_path, about(mode="disabled"))
    assert writer.wandb_run_id is None
    assert not (tmp_path / "wandb").exists()
    assert len(jsonl(tmp_path)) == 5
    assert capfd.readouterr() == ("", "")


def _file_in_the_way(run_dir, monkeypatch):
    (run_dir / "wandb").write_text("")


def _init_raises(run_dir, monkeypatch):
    def broken(**_):
        raise RuntimeError("the service\nfell over")

    monkeypatch.setattr(wandb, "init", broken)


def _not_installed(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)


@pytest.mark.parametrize("break_it", [_file_in_the_way, _init_raises, _not_installed])
def test_a_failing_start_costs_one_line_and_nothing_else(tmp_path, monkeypatch, capsys, break_it):
    break_it(tmp_path, monkeypatch)
    writer = write_run(tmp_path)
    assert writer.wandb_run_id is None
    assert len(jsonl(tmp_path)) == 5
    assert len(jsonl(tmp_path, "samples.jsonl")) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rayrlhf: Weights & Biases failed and is left out from here on:")


def test_a_failure_in_mid_run_costs_one_line_and_nothing_else(tmp_path, monkeypatch, capsys):
    real, calls = wandb.Run.log, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise BrokenPipeError("the service is gone")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", failing)
    write_run(tmp_path)
    assert len(calls) == 3
    assert len(jsonl(tmp_path)) == 5
    assert capsys.readouterr().err.count("the service is gone") == 1
    wandb.teardown()


def test_uploads_that_never_end_do_not_hold_the_run(tmp_path, monkeypatch, capsys):
    forever = threading.Event()
    monkeypatch.setattr(wandb.Run, "finish", lambda self: forever.wait())
    monkeypatch.setattr(sinks, "_FINISH_SECONDS", 0.2)
    write_run(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "`wandb sync` sends the rest" in line
    forever.set()
    wandb.teardown()


BLOCKED = """
import sys
import threading
from pathlib import Path
from rayrlhf.telemetry import sinks
sinks._START_SECONDS = 2.0
writer = sinks.MetricsWriter(
    Path(sys.argv[1]), sinks.WandbRun(mode="auto", project="p", entity=None, name="n", config={})
)
writer.log("ppo", 0, {"reward/score": 0.5})
writer.close()
"""


def test_a_blocked_network_leaves_an_offline_run(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    run_dir = tmp_path / "run"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(run_dir)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "goes on offline" in line
    assert done.stdout == ""
    assert [row["ppo/reward/score"] for row in history(run_dir)] == [0.5]


def test_without_credentials_auto_is_offline(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    run_dir = tmp_path / "run"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(run_dir)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [row["ppo/reward/score"] for row in history(run_dir)] == [0.5]


KILLED = """
import os, signal, sys
from pathlib import Path
from rayrlhf.telemetry.sinks import MetricsWriter, WandbRun
from rayrlhf.telemetry.wandb_history import logged_so_far
run = WandbRun(mode="offline", project="p", entity=None, name="n", config={}, run_id="abcd1234")
writer = MetricsWriter(Path(sys.argv[1]), run)
for step in range(4):
    writer.log("ppo", step, {"eval/score": 1.0 - 0.1 * step})
    writer.samples([{"stage": "ppo", "step": step, "response": "hi", "score": 1.0}])
deadline = time.monotonic() + 40
while logged_so_far(Path(sys.argv[1]), "abcd1234").rows.get("ppo", -1) < 3 and time.monotonic() < deadline:
    time.sleep(0.2)  # W&B's own process writes what it was handed every few seconds
writer.log("ppo", 4, {"eval/score": 0.6})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_in_one_history(tmp_path):
    """_step rises over both processes, and a step that is trained again is not logged again."""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, timeout=60, check=False)
    held = logged_so_far(tmp_path, "abcd1234")
    assert held.rows["ppo"] in (3, 4)
    writer = MetricsWriter(tmp_path, about(run_id="abcd1234"), last_steps={"ppo": 1})
    for step in range(2, 7):
        writer.log("ppo", step, {"eval/score": 2.0 + step})
        writer.samples([{"stage": "ppo", "step": step, "response": "hi", "score": 1.0}])
    writer.close({"wall_seconds": 3.0, "stages": {"ppo": {"updates": 6, "restarts": {"rollout": 1}}}})

    files = sorted(tmp_path.glob("wandb/offline-run-*/run-abcd1234.wandb"))
    assert len(files) == 2
    found = [record for path in files for record in records(path) if record.WhichOneof("record_type") == "history"]
    internal = [record.history.step.num for record in found]
    assert internal == sorted(set(internal))
    keys = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
    ]
    metrics = [(row["ppo/step"], row["ppo/eval/score"]) for row in keys if "ppo/eval/score" in row]
    assert [step for step, _ in metrics] == list(range(7))
    assert dict(metrics)[3] == pytest.approx(0.7)
    tables = [row["ppo/step"] for row in keys if any(key.startswith("samples/") for key in row)]
    assert tables == sorted(set(tables))
    assert [row["eval/score"] for row in jsonl(tmp_path)] == [1.0, 0.9, 4.0, 5.0, 6.0, 7.0, 8.0]
    summary = {}
    for record in records(files[-1]):
        if record.WhichOneof("record_type") == "summary":
            summary |= {".".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.summary.update}
    assert (summary["best/ppo/eval/score"], summary["best/ppo/eval/score_step"]) == (8.0, 6)
    assert (summary["final/stages/ppo/restarts/rollout"], summary["final/wall_seconds"]) == (1, 3.0)


def test_a_torn_file_counts_up_to_the_tear(tmp_path):
    writer = write_run(tmp_path, about(run_id="torn0001"))
    whole = logged_so_far(tmp_path, writer.wandb_run_id)
    assert (whole.rows, whole.samples) == ({"sft": 3, "ppo": 1}, {"ppo": 1, "eval": 1})
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert logged_so_far(tmp_path, "torn0001").next_step <= whole.next_step


def test_the_run_says_where_it_is_and_what_it_belongs_to(tmp_path):
    writer = MetricsWriter(tmp_path, about(run_id="told0001", group="lab", job_type="sft-ppo", tags=["one", "two"]))
    assert writer.wandb_told.startswith("W&B: run told0001, offline; to send it: wandb sync ")
    assert list(tmp_path.glob("wandb/offline-run-*-told0001*"))
    writer.close()
    run = next(record.run for record in records(only_file(tmp_path)) if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.run_group, run.job_type, list(run.tags)) == ("told0001", "lab", "sft-ppo", ["one", "two"])
    silent = MetricsWriter(tmp_path / "silent", about(mode="disabled"))
    assert silent.wandb_told == ""
    silent.close()


def test_best_values_know_what_better_means():
    rows = [
        {"stage": "reward", "step": 1, "eval/loss": 0.5, "eval/accuracy": 0.7},
        {"stage": "reward", "step": 2, "eval/loss": 0.4, "eval/accuracy": 0.6},
        {"stage": "ppo", "step": 0, "eval/gold": 0.5},
        {"stage": "ppo", "step": 9, "eval/gold": None, "reward/score": 3.0},
    ]
    best = sinks.best_values(rows)
    assert (best["best/reward/eval/loss"], best["best/reward/eval/loss_step"]) == (0.4, 2)
    assert (best["best/reward/eval/accuracy"], best["best/reward/eval/accuracy_step"]) == (0.7, 1)
    assert best["best/ppo/eval/gold"] == 0.5
    assert len(best) == 6
