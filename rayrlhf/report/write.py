"""report.html: what a run did, on one page that opens offline. A part whose data is absent is left out."""

import math
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rayrlhf.report.data import Row, RunRecord, read_run
from rayrlhf.report.figures import (
    objective_figures,
    supervised_figures,
    system_figures,
    update_figures,
)
from rayrlhf.report.page import figures, tile, tiles, write_page
from rayrlhf.report.refresh_figures import refresh_figures, refresh_finding
from rayrlhf.report.reward_figures import evaluation_figures
from rayrlhf.report.verdict import Verdict, judge, signed
from rayrlhf.report.watched import watched_findings
from rayrlhf.report.worker_figures import happened
from rayrlhf.telemetry.console import format_bytes, format_duration
from rayrlhf.telemetry.metrics import METRICS

_EXAMPLES = 10
"""Prompts shown at once; the others open on a click."""

_MOST_EXAMPLES = 100


def write_report(run_dir: Path) -> Path:
    """Write the report of a run, finished or not, from the files in its folder."""
    record = read_run(run_dir)
    parts = [
        _failure(record),
        _tiles(record),
        _verdict(record),
        figures("What was optimised", objective_figures(record)),
        _before_and_after(record),
        figures(_supervised_title(record), supervised_figures(record)),
        figures("The reward model, judged by held-out preferences", evaluation_figures(record.evaluation)),
        _home(record),
        figures("The updates", update_figures(record)),
        figures("The machine", system_figures(record)),
        happened(record),
        _ledger(record),
        _all_metrics(record),
        _config(record),
    ]
    return write_page(
        run_dir / "report.html",
        title=record.name,
        subtitle=_subtitle(record),
        parts=parts,
        footer="rayrlhf report, written from metrics.jsonl, samples.jsonl, events.jsonl, summary.json and config.yaml of "
        "this run.",
    )


def _supervised_title(record: RunRecord) -> str:
    names = {"sft": "Supervised fine-tuning", "reward": "reward model"}
    title = " and ".join(name for stage, name in names.items() if record.stages.get(stage))
    return title[:1].upper() + title[1:]


def _subtitle(record: RunRecord) -> str:
    units = {
        "sft": "SFT, {} steps",
        "reward": "reward model, {} steps",
        "ppo": f"{record.words.algorithm}, {{}} updates",
    }
    told = [
        units[stage].format(f"{record.stages[stage][-1]['step']:,}") for stage in units if record.stages.get(stage)
    ] or ["nothing logged yet"]
    if "seed" in record.summary:
        told.append(f"seed {record.summary['seed']}")
    newest = max((rows[-1]["time"] for rows in record.stages.values() if rows), default=None)
    if newest is not None:
        told.append(time.strftime("%Y-%m-%d %H:%M", time.localtime(newest)))
    return " · ".join(told)


def _failure(record: RunRecord) -> str:
    if record.failure is None:
        return ""
    return f'<p class="card verdict bad"><b>This run broke off.</b> {escape(record.failure)}</p>'


def _tiles(record: RunRecord) -> str:
    stages = record.summary.get("stages", {})
    found = _objective_tiles(record, stages.get("ppo", {}))
    accuracy = stages.get("reward", {}).get("heldout_accuracy", record.last("reward", "eval/accuracy"))
    if accuracy is not None:
        chance = ", no better than chance" if stages.get("reward", {}).get("at_chance") else ""
        found.append(tile("Reward model", f"{accuracy:.1%}", f"held-out pairs in order{chance}"))
    loss = stages.get("sft", {}).get("loss", record.last("sft", "eval/nll"))
    if loss is not None:
        found.append(tile("SFT", f"{loss:.3f}", "held-out loss, nats per token"))
    if "ppo" in stages:
        ppo = stages["ppo"]
        faults = f"{ppo['samples_lost']:,} lost, {ppo['samples_duplicated']:,} duplicated"
        found.append(tile("Samples trained", f"{ppo['samples_trained']:,}", faults))
    if "wall_seconds" in record.summary:
        parts = ", ".join(f"{stage} {format_duration(facts['wall_seconds'])}" for stage, facts in stages.items())
        found.append(tile("Wall clock", format_duration(record.summary["wall_seconds"]), parts))
        found.append(tile("Peak memory", format_bytes(record.summary["peak_memory_bytes"]), "all local processes"))
    return tiles(found)


def _objective_tiles(record: RunRecord, facts: Row) -> list[str]:
    """Score, gold and KL: from the summary, or as the evaluations stand where there is none yet."""
    evaluated = [row for row in record.stages.get("ppo", []) if row.get("eval/score") is not None]
    if not facts and evaluated:
        first, last = evaluated[0], evaluated[-1]
        facts = {
            "score_before": first["eval/score"],
            "score_after": last["eval/score"],
            "pass_rate_before": first.get("eval/pass_rate"),
            "pass_rate_after": last.get("eval/pass_rate"),
            "gold_before": first.get("eval/gold"),
            "gold_after": last.get("eval/gold"),
            "kl_to_reference": last.get("eval/kl"),
        }
    found = []
    words = record.words
    if facts.get("score_before") is not None and facts.get("score_after") is not None:
        if facts.get("pass_rate_before") is not None and facts.get("pass_rate_after") is not None:
            change = f"{facts['pass_rate_before']:.0%} → {facts['pass_rate_after']:.0%}"
            found.append(tile(f"Right answers, {words.course}", change, _pass_note(record)))
        else:
            change = f"{signed(facts['score_before'])} → {signed(facts['score_after'])}"
            found.append(tile(f"Score, {words.course}", change, f"{words.judge}, held-out prompts"))
    if facts.get("gold_before") is not None and facts.get("gold_after") is not None and not record.gold_is_score:
        found.append(_gold_tile(facts, words.course))
    if facts.get("kl_to_reference") is not None:
        found.append(tile("KL to the reference", f"{facts['kl_to_reference']:z.2f}", "nats per response"))
    return found


def _pass_note(record: RunRecord) -> str:
    """Of the newest evaluation: how many answers, and how well the share is known."""
    low, high, count = (record.last("ppo", f"eval/pass_{name}") for name in ("rate_low", "rate_high", "n"))
    if low is None or high is None or count is None:
        return f"{record.words.judge}, held-out prompts"
    return f"{record.words.judge}, {count:,.0f} held-out answers; 95 % interval {100 * low:.0f} to {high:.0%}"


def _gold_tile(facts: Row, course: str) -> str:
    before, after, best = facts["gold_before"], facts["gold_after"], facts.get("gold_best")
    change = f"{signed(before)} → {signed(after)}"
    if best is None or best <= before:
        return tile(f"Gold, {course}", change, "true reward, held-out prompts")
    judged = facts.get("gold_confirmed")
    closed = ((after if judged is None else judged) - before) / (best - before)
    width = 100.0 * min(max(closed, 0.0), 1.0)
    bar = f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
    share = f"{closed:.0%}".replace("-", "−")
    anew = "" if judged is None else f", by other answers of the same policy: {signed(judged)}"
    return tile(f"Gold, {course}", change, f"{share} of the gap to the best, {best:.2f}{anew}", bar=bar)


def _verdict(record: RunRecord) -> str:
    verdict = judge(record)
    found = [*([] if verdict is None else [verdict]), *watched_findings(record)]
    return "".join(map(_paragraph, found))


def _paragraph(one: Verdict) -> str:
    return f'<p class="card verdict {one.tone}"><b>{escape(one.headline)}.</b> {escape(one.sentence)}</p>'


def _home(record: RunRecord) -> str:
    if not record.refresh:
        return ""
    drawn = figures("How far the reward model is from home", refresh_figures(record.refresh))
    return drawn + _paragraph(refresh_finding(record.refresh))


def _before_and_after(record: RunRecord) -> str:
    if len(record.evaluations) < 2:
        return ""
    first = record.evaluations[0]
    last = next((e for e in record.evaluations if e.step == record.exported_step), record.evaluations[-1])
    after = {str(row["sample_id"]): row for row in last.answers}
    pairs = [(row, after[sample]) for row in first.answers if (sample := str(row["sample_id"])) in after]
    if not pairs:
        return ""
    before = f"Before: {record.words.starting_policy}" if first.step == 0 else f"At update {first.step}"
    columns = (before, f"After {last.step} updates")
    told = record.right_or_wrong
    shown = _pair_table(pairs[:_EXAMPLES], columns, right_or_wrong=told)
    rest = pairs[_EXAMPLES:_MOST_EXAMPLES]
    hidden = _pair_table(rest, columns, right_or_wrong=told)
    more = f"<details><summary>{len(rest)} more</summary>{hidden}</details>" if rest else ""
    note = f"The first {len(pairs[:_EXAMPLES])} of {len(pairs)} held-out prompts, not selected."
    return f'<h2>Before and after, side by side</h2><div class="card"><p class="prompt">{note}</p>{shown}{more}</div>'


def _pair_table(pairs: Sequence[tuple[Row, Row]], columns: tuple[str, str], *, right_or_wrong: bool) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("Prompt", *columns))
    rows = "".join(
        f'<tr><td class="prompt text">{escape(str(before["prompt"]))}</td>'
        f'<td data-label="{escape(columns[0])}">{_answer(before, right_or_wrong)}</td>'
        f'<td data-label="{escape(columns[1])}">{_answer(after, right_or_wrong)}</td></tr>'
        for before, after in pairs
    )
    return f'<table class="pairs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _answer(row: Row, right_or_wrong: bool) -> str:
    response = str(row["response"]).strip()
    text = f'<span class="text">{escape(response)}</span>' if response else '<span class="empty">empty</span>'
    chips, names = [], ["score", "gold"]
    if right_or_wrong and row.get("score") in (0.0, 1.0):
        verdict = "right" if row["score"] else "wrong"
        chips.append(f'<span class="chip {verdict}">{verdict}</span>')
        names = ["gold"] if row.get("gold") != row["score"] else []
    chips += [
        f'<span class="chip {name}">{name} {signed(row[name])}</span>' for name in names if row.get(name) is not None
    ]
    if row.get("finish") == "length":
        chips.append('<span class="chip cut">cut at the length limit</span>')
    return f'{text}<span class="chips">{"".join(chips)}</span>'


def _ledger(record: RunRecord) -> str:
    names = [name for name in METRICS if name.startswith(("ledger/", "perf/restarts"))]
    counts = [(name, record.last("ppo", name)) for name in names]
    rows = "".join(
        f'<tr><td>{escape(name.split("/")[1].replace("_", " "))}</td><td class="number">{count:,.0f}</td>'
        f"<td>{escape(METRICS[name].meaning)}</td></tr>"
        for name, count in counts
        if count is not None
    )
    if not rows:
        return ""
    head = "<thead><tr><th>what</th><th>count</th><th>meaning</th></tr></thead>"
    return f'<h2>Every sample once: the ledger</h2><div class="card"><table>{head}<tbody>{rows}</tbody></table></div>'


def _all_metrics(record: RunRecord) -> str:
    rows = "".join(
        f'<tr><td>{stage}</td><td>{escape(name)}</td><td class="number">{_figure(value)} {escape(metric.unit)}</td>'
        f"<td>{escape(metric.meaning)}</td></tr>"
        for stage in ("sft", "reward", "ppo")
        for name, metric in METRICS.items()
        if (value := record.last(stage, name)) is not None
    )
    if not rows:
        return ""
    head = "<thead><tr><th>stage</th><th>metric</th><th>last value</th><th>meaning</th></tr></thead>"
    table = f"<table>{head}<tbody>{rows}</tbody></table>"
    return f'<h2>Details</h2><details class="card"><summary>Every metric, its last value</summary>{table}</details>'


def _figure(value: float) -> str:
    whole = math.isfinite(value) and value == round(value)
    return f"{value:,.0f}" if whole or abs(value) >= 1e4 else f"{value:.4g}"


def _config(record: RunRecord) -> str:
    if not record.config:
        return ""
    text = escape(record.config)
    return f'<details class="card"><summary>The resolved configuration</summary><pre>{text}</pre></details>'
