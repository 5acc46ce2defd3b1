"""report.html: what a run did, on one page that opens offline. Parts whose data is absent are left out."""

import json
import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from rayrlhf.telemetry import report_figures as figures
from rayrlhf.telemetry.console import format_bytes, format_duration
from rayrlhf.telemetry.report_figures import BLUE, GREEN, GREY, ORANGE, RED, Rows

_EXAMPLES = 12


def write_report(run_dir: Path) -> Path:
    """Write the report of a run, finished or not, from the files in its folder."""
    metrics = _read_jsonl(run_dir / "metrics.jsonl")
    samples = _read_jsonl(run_dir / "samples.jsonl")
    summary = json.loads((run_dir / "summary.json").read_text()) if (run_dir / "summary.json").exists() else {}
    stages = {stage: [row for row in metrics if row["stage"] == stage] for stage in ("sft", "reward", "ppo")}
    parts = [
        _tiles(summary),
        _verdict(stages["ppo"]),
        _section("What was optimised", _objective_figures(stages["ppo"])),
        _before_and_after(samples),
        _section("Learning to imitate and to judge", _supervised_figures(stages["sft"], stages["reward"])),
        _section("The PPO updates", _update_figures(stages["ppo"])),
        _section("Engine, time and memory", _system_figures(stages["ppo"])),
        _ledger(summary),
        _config(run_dir / "config.yaml"),
    ]
    template = Template(resources.files("rayrlhf.telemetry").joinpath("report.html").read_text())
    done = ", ".join(stage for stage, rows in stages.items() if rows) or "nothing yet"
    page = template.substitute(
        title=escape(str(summary.get("run", run_dir.name))),
        subtitle=escape(f"rayrlhf run, stages: {done}, seed {summary.get('seed', '?')}"),
        body="\n".join(part for part in parts if part),
    )
    partial = run_dir / ".report.html.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, run_dir / "report.html")
    return run_dir / "report.html"


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _tiles(summary: dict[str, Any]) -> str:
    stages = summary.get("stages", {})
    tiles: list[tuple[str, str]] = []
    if "ppo" in stages:
        ppo = stages["ppo"]
        tiles.append((f"{ppo['score_before']:.2f} → {ppo['score_after']:.2f}", "reward-model score, SFT → PPO"))
        if ppo.get("gold_before") is not None:
            gap = ppo["gold_best"] - ppo["gold_before"]
            closed = (ppo["gold_after"] - ppo["gold_before"]) / gap if gap > 0 else 1.0
            tiles.append((f"{ppo['gold_before']:.3f} → {ppo['gold_after']:.3f}", f"gold reward, best {ppo['gold_best']:.3f}"))
            tiles.append((f"{closed:.0%}", "of the gap to the best closed"))
        tiles.append((f"{ppo['kl_to_reference']:.2f}", "KL to the reference, nats a response"))
        tiles.append((f"{ppo['mismatch_p99']:.1e}", "engine against learner, worst p99, nats"))
    if "reward" in stages:
        tiles.append((f"{stages['reward']['heldout_accuracy']:.1%}", "reward-model held-out accuracy"))
    if summary:
        tiles.append((format_duration(summary["wall_seconds"]), "wall clock"))
        tiles.append((format_bytes(summary["peak_memory_bytes"]), "peak memory, all processes"))
    body = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{body}</div>' if tiles else ""


def _verdict(ppo: Rows) -> str:
    """Whether gold kept up with the proxy on the held-out prompts, in words."""
    evaluated = [row for row in ppo if row.get("eval/gold") is not None]
    if len(evaluated) < 2:
        return ""
    first, last = evaluated[0], evaluated[-1]
    peak = max(evaluated, key=lambda row: row["eval/gold"])
    score = f"the score went from {first['eval/score']:.2f} to {last['eval/score']:.2f}"
    fell = peak["eval/gold"] - last["eval/gold"]
    behind = fell > 0.03 and last["eval/score"] > peak["eval/score"] - 0.02
    if behind:
        told = (
            f"Over-optimisation: gold peaked at {peak['eval/gold']:.3f} (step {peak['step']}, KL {peak['eval/kl']:.1f}) and "
            f"ended at {last['eval/gold']:.3f} (KL {last['eval/kl']:.1f}), while {score}."
        )
    else:
        told = (
            f"Gold kept up with the score: it went from {first['eval/gold']:.3f} to {last['eval/gold']:.3f} "
            f"(peak {peak['eval/gold']:.3f}) at a final KL of {last['eval/kl']:.1f} nats a response, while {score}."
        )
    return f'<p class="card verdict{" bad" if behind else ""}">{escape(told)}</p>'


def _objective_figures(ppo: Rows) -> list[tuple[str, str]]:
    found = []
    evaluated = [row for row in ppo if row.get("eval/score") is not None]
    training = [row for row in ppo if row.get("reward/score") is not None]
    if training:
        gold = "reward/gold" if figures.has(training, "reward/gold") else None
        by_kl = figures.two_scales(
            training, x="kl/reference", xlabel="KL to the reference, nats a response", left="reward/score", right=gold
        )
        found.append(("Proxy and gold against the distance from the reference, training batches", by_kl))
        by_step = figures.two_scales(training, x="step", xlabel="step", left="reward/score", right=gold)
        found.append(("Proxy and gold by step, training batches", by_step))
    if len(evaluated) > 1:
        gold = "eval/gold" if figures.has(evaluated, "eval/gold") else None
        held = figures.two_scales(evaluated, x="step", xlabel="step", left="eval/score", right=gold)
        found.append(("Proxy and gold on held-out prompts, same sampling every time", held))
        curves = [("eval/distinct_2", "distinct-2", BLUE), ("eval/repeated", "repeated for another prompt", RED)]
        found.append(("Variety of held-out responses", figures.lines(evaluated, curves, ylabel="share")))
    return found


def _supervised_figures(sft: Rows, reward: Rows) -> list[tuple[str, str]]:
    found = []
    if sft:
        curves = [("policy/nll", "training", BLUE), ("eval/nll", "held-out", ORANGE)]
        found.append(("Supervised fine-tuning: loss", figures.lines(sft, curves, ylabel="nats a token")))
    if reward:
        curves = [("reward/accuracy", "training", BLUE), ("eval/accuracy", "held-out", ORANGE)]
        found.append(("Reward model: pairs ordered as labelled", figures.lines(reward, curves, ylabel="share")))
        curves = [("reward/loss", "training", BLUE), ("eval/loss", "held-out", ORANGE)]
        found.append(("Reward model: Bradley-Terry loss", figures.lines(reward, curves, ylabel="nats")))
    return found


def _update_figures(ppo: Rows) -> list[tuple[str, str]]:
    wanted: list[tuple[str, list[tuple[str, str, str]], str, bool]] = [
        ("KL to the reference", [("kl/reference", "nats a response", BLUE)], "nats a response", False),
        ("Entropy of the policy", [("policy/entropy", "entropy", BLUE)], "nats a token", False),
        ("Response length", [("rollout/length", "mean", BLUE), ("rollout/length_max", "longest", GREY)], "tokens", False),
        (
            "Truncated and repeated responses",
            [("rollout/truncated", "truncated", RED), ("rollout/repeated", "repeated", ORANGE)],
            "share",
            False,
        ),
        (
            "How far an update goes",
            [("policy/approx_kl", "KL(old, new)", BLUE), ("policy/clip_fraction", "clipped tokens", ORANGE)],
            "",
            False,
        ),
        (
            "Critic",
            [("critic/explained_variance", "explained variance", GREEN), ("critic/loss", "loss", GREY)],
            "",
            False,
        ),
    ]
    rows = [row for row in ppo if row["step"] > 0]
    return [
        (title, figures.lines(rows, curves, ylabel=ylabel, log=log))
        for title, curves, ylabel, log in wanted
        if any(figures.has(rows, name) for name, _, _ in curves)
    ]


def _system_figures(ppo: Rows) -> list[tuple[str, str]]:
    rows = [row for row in ppo if row["step"] > 0]
    if not rows:
        return []
    gaps = [("mismatch/p50", "p50", GREEN), ("mismatch/p95", "p95", BLUE), ("mismatch/p99", "p99", RED)]
    phases = [
        ("time/rollout", "rollout", BLUE),
        ("time/scoring", "scoring", GREEN),
        ("time/learner", "learner", ORANGE),
        ("time/sync", "weights", RED),
        ("time/checkpoint", "checkpoint", GREY),
    ]
    found = [
        ("|engine − learner| log-prob under the same weights", figures.lines(rows, gaps, ylabel="nats", log=True)),
        ("Time of a step, by phase", figures.stacked_times(rows, phases)),
        ("Speed", figures.lines(rows, [("perf/tokens_per_second", "trained", BLUE)], ylabel="tokens a second")),
    ]
    memory = [{**row, "gib": row["perf/memory_bytes"] / 2**30} for row in rows if row.get("perf/memory_bytes")]
    if memory:
        found.append(("Memory of all processes", figures.lines(memory, [("gib", "memory", BLUE)], ylabel="GiB")))
    return found


def _before_and_after(samples: Sequence[dict[str, Any]]) -> str:
    evaluated = [row for row in samples if row["stage"] == "eval"]
    steps = sorted({row["step"] for row in evaluated})
    if len(steps) < 2:
        return ""
    before, after = ({row["prompt"]: row for row in evaluated if row["step"] == step} for step in (steps[0], steps[-1]))
    shared = [prompt for prompt in before if prompt in after][:_EXAMPLES]
    rows = "".join(
        f'<tr><td class="prompt">{_text(prompt)}</td><td>{_answer(before[prompt])}</td><td>{_answer(after[prompt])}</td></tr>'
        for prompt in shared
    )
    head = f"<tr><th>held-out prompt</th><th>before (SFT)</th><th>after {steps[-1]} updates</th></tr>"
    return f'<h2>Before and after, the same prompts</h2><div class="card scroll"><table>{head}{rows}</table></div>'


def _answer(row: dict[str, Any]) -> str:
    gold = f", gold {row['gold']:.2f}" if row.get("gold") is not None else ""
    cut = ", cut" if row.get("finish") == "length" else ""
    score = f"{row['score']:.2f}" if row.get("score") is not None else "none"
    return f'{_text(row["response"].strip())}<span class="num">score {score}{gold}{cut}</span>'


def _text(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _section(title: str, drawn: Sequence[tuple[str, str]]) -> str:
    if not drawn:
        return ""
    body = "".join(f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in drawn)
    return f'<h2>{escape(title)}</h2><div class="figures">{body}</div>'


def _ledger(summary: dict[str, Any]) -> str:
    ppo = summary.get("stages", {}).get("ppo")
    if not ppo:
        return ""
    restarts: dict[str, int] = ppo["restarts"]
    counts: list[tuple[str, Any]] = [
        ("samples trained", ppo["samples_trained"]),
        ("lost", ppo["samples_lost"]),
        ("second copies refused", ppo["samples_duplicated"]),
        ("dropped", ppo["samples_dropped"]),
        ("policy versions", ppo["policy_versions"]),
        *((f"{role} restarts", count) for role, count in restarts.items()),
    ]
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for name, value in counts)
    return f'<h2>Every sample, once</h2><div class="tiles">{tiles}</div>'


def _config(path: Path) -> str:
    if not path.exists():
        return ""
    text = escape(path.read_text(encoding="utf-8"))
    return f'<h2>Configuration</h2><details class="card"><summary>The resolved configuration</summary><pre>{text}</pre></details>'
