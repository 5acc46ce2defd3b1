import io
import re

import pytest
from rich.console import Console as RichConsole

from rayrlhf.telemetry import console as console_module
from rayrlhf.telemetry.console import Console, Progress, format_bytes, format_duration

CLOCK = r"\d\d:\d\d:\d\d "


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1m00s"), (125, "2m05s"), (3599, "59m59s"), (3725, "1h02m")],
)
def test_durations(seconds, told):
    assert format_duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**20, "1.5 MiB"), (3 * 2**40, "3072.0 GiB")],
)
def test_bytes(count, told):
    assert format_bytes(count) == told


def test_plain_lines_are_few_and_hold_the_newest_figures(capsys):
    with Console().progress("ppo", 60) as progress:
        for step in range(1, 61):
            progress.update(step, {"reward/score": step / 10, "kl/reference": 2.1, "perf/tokens_per_second": 1234.4})
    first, last = capsys.readouterr().out.splitlines()
    assert re.match(CLOCK + r"ppo 1/60  score 0\.10  kl 2\.10  tok/s 1,234  eta ", first)
    assert re.fullmatch(CLOCK + r"ppo 60/60  score 6\.00  kl 2\.10  tok/s 1,234  eta 0 s", last)


def test_a_figure_that_a_step_lacks_is_not_shown_for_it(capsys):
    with Console().progress("ppo", 2) as progress:
        progress.update(1, {"reward/score": 0.5, "kl/reference": 2.1})
        progress.update(2, {"reward/score": 0.6})
    first, last = capsys.readouterr().out.splitlines()
    assert "score 0.50  kl 2.10  eta" in first
    assert "score 0.60  eta" in last


def test_eta_of_a_resumed_stage_counts_its_own_steps(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with Console().progress("sft", 50) as progress:
        now[0] += 20.0
        progress.update(41, {})
        now[0] += 20.0
        progress.update(42, {"eval/nll": float("nan")})
    first, told, second = capsys.readouterr().out.splitlines()
    assert first.endswith("eta 3m00s")  # 9 steps of 20 s
    assert re.fullmatch(CLOCK + "sft 42/50  evaluation: loss nan", told)
    assert second.endswith("eta 2m40s")


def test_evaluations_are_lines_of_their_own(capsys):
    evaluated = {"eval/score": 0.25, "eval/gold": 0.25, "eval/kl": 1.4, "eval/length": 9.0}
    passed = {"eval/pass_rate": 0.25, "eval/pass_rate_low": 0.201, "eval/pass_rate_high": 0.307, "eval/pass_n": 256.0}
    with Console().progress("ppo", 60) as progress:
        progress.update(1, {"reward/score": 0.2})
        progress.update(2, {"reward/score": 0.3} | evaluated | {"eval/gold": 0.5})
        progress.update(3, {"reward/score": 0.3} | evaluated | passed)
    lines = [re.sub(CLOCK, "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        "ppo 2/60  evaluation: score 0.25, gold 0.500, KL 1.40 nats",
        "ppo 3/60  evaluation: right 25.0% (20.1% to 30.7%), KL 1.40 nats",
    ]


def test_right_and_wrong_answers_are_told_as_their_share_alone(capsys):
    with Console().progress("ppo", 2) as progress:
        progress.update(1, {"reward/score": 0.5, "reward/gold": 0.5, "reward/pass_rate": 0.5})
        progress.update(2, {"reward/score": 0.5, "reward/gold": 0.4, "reward/pass_rate": 0.5})
    first, last = capsys.readouterr().out.splitlines()
    assert "ppo 1/2  right 50%  eta" in first
    assert "ppo 2/2  right 50%  gold 0.400  eta" in last


def test_the_speed_is_that_of_the_newest_steps_together(capsys):
    with Console().progress("ppo", 12) as progress:
        for step in range(1, 12):
            progress.update(step, {"perf/tokens_per_second": 2000.0, "time/step": 1.0})
        progress.update(12, {"perf/tokens_per_second": 100.0, "time/step": 20.0})  # with an evaluation
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"tok/s {(9 * 2000 + 2000) / 29:,.0f}  eta" in last


def test_a_terminal_gets_a_live_line():
    out = io.StringIO()
    with Progress(RichConsole(file=out, force_terminal=True, width=140), "ppo", 60) as progress:
        progress.update(12, {"reward/score": 1.32, "reward/gold": 0.61})
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue()).splitlines()[-1]
    assert "12/60" in shown
    assert "score 1.32  gold 0.610" in shown
    assert re.search(r"elapsed \d:\d\d:\d\d left [-\d]", shown)


def test_texts_with_brackets_come_out_whole(capsys):
    console = Console()
    console.table("roles", ["key", "value"], [["stages", "[sft, ppo] [red]x[/red]"]])
    console.note("data.task=[innkeeper] [/b]")
    console.warn("[x]")
    console.error("1 GPU [cuda]")
    out = capsys.readouterr().out
    for text in ("[sft, ppo] [red]x[/red]", "data.task=[innkeeper] [/b]", "warning: [x]", "1 GPU [cuda]"):
        assert text in out
