import json
import math

import pytest

from rayrlhf.telemetry.sinks import JsonlSink, MetricsWriter, WandbRun, keep_until

SILENT = WandbRun(mode="disabled", project="p", entity=None, name="n", config={})


def strict_rows(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


def test_rows_are_valid_json_and_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, SILENT)
    writer.log("ppo", 3, {"reward/score": 1.5, "kl/reference": math.nan, "policy/loss": -math.inf})
    (row,) = strict_rows(tmp_path / "metrics.jsonl")
    assert row.pop("time") > 1e9
    assert row == {"stage": "ppo", "step": 3, "reward/score": 1.5, "kl/reference": None, "policy/loss": None}
    writer.close()


def test_undeclared_metric_is_refused_and_leaves_no_row(tmp_path):
    writer = MetricsWriter(tmp_path, SILENT)
    with pytest.raises(KeyError, match="reward/scoer"):
        writer.log("ppo", 1, {"reward/scoer": 1.0})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("text", ["line\nbreak", "sep\u2028arator\x85", "lone \ud800 surrogate", "日本 🙂 \x00"])
def test_any_text_survives_as_one_line(tmp_path, text):
    sink = JsonlSink(tmp_path / "samples.jsonl")
    sink.write([{"stage": "ppo", "step": 1, "response": text}, {"stage": "ppo", "step": 2, "response": "next"}])
    sink.close()
    keep_until(tmp_path / "samples.jsonl", {"ppo": 1})
    assert [row["response"] for row in strict_rows(tmp_path / "samples.jsonl")] == [text]


def test_resume_keeps_what_the_checkpoint_knows(tmp_path):
    writer = MetricsWriter(tmp_path, SILENT)
    for stage, steps in (("sft", 4), ("ppo", 5)):
        for step in range(steps):
            writer.log(stage, step, {"time/step": float(step)})
    for step in range(5):
        writer.samples([{"stage": stage, "step": step, "response": f"{stage} {step}"} for stage in ("ppo", "eval")])
    writer.close()
    resumed = MetricsWriter(tmp_path, SILENT, last_steps={"ppo": 2})
    resumed.log("ppo", 3, {"time/step": 33.0})
    resumed.close()
    rows = [(row["stage"], row["step"], row["time/step"]) for row in strict_rows(tmp_path / "metrics.jsonl")]
    assert rows == [("sft", s, float(s)) for s in range(4)] + [("ppo", s, float(s)) for s in range(3)] + [
        ("ppo", 3, 33.0)
    ]
    samples = [(row["stage"], row["step"]) for row in strict_rows(tmp_path / "samples.jsonl")]
    assert samples == [(stage, step) for step in range(3) for stage in ("ppo", "eval")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_stage_without_a_checkpoint_starts_over(tmp_path):
    writer = MetricsWriter(tmp_path, SILENT)
    writer.log("ppo", 0, {"eval/score": 0.0})
    writer.close()
    MetricsWriter(tmp_path, SILENT, last_steps={"ppo": -1}).close()
    assert strict_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_line_torn_at_any_byte_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    whole = '{"stage": "ppo", "step": 1, "note": "größer"}\n'.encode()
    path.write_bytes(whole + whole[:-cut])
    MetricsWriter(tmp_path, SILENT).close()
    kept = strict_rows(path)
    assert len(kept) == (2 if cut == 1 else 1)  # only the line feed is missing: nothing of the row is lost
    assert path.read_bytes() == whole * len(kept)
