"""Whether measures that nobody rewards went with the score or against it, in words."""

from rayrlhf.report.data import Row, RunRecord
from rayrlhf.report.verdict import Verdict, direction
from rayrlhf.telemetry.metrics import WATCHED, watch_metric


def watched_findings(record: RunRecord) -> list[Verdict]:
    """One finding for each measure of ppo.watch: of the exported policy, or of the last, beside the starting one."""
    return [finding for name in WATCHED if (finding := _finding(record, name)) is not None]


def _finding(record: RunRecord, name: str) -> Verdict | None:
    key = watch_metric(name)
    rows = [row for row in record.stages.get("ppo", []) if row.get(key) is not None]
    kept = [row for row in rows if record.exported_step is None or row["step"] <= record.exported_step]
    if len(kept) < 2:
        return None
    first, last, told = kept[0], kept[-1], WATCHED[name]
    moved = direction(record, rows, first, last, key.removeprefix("eval/"))
    score_moved = direction(record, rows, first, last, "score")
    went = f"{told}, which is not rewarded, went from {_shown(first, key)} to {_shown(last, key)}"
    score = f"the score went from {first['eval/score']:.2f} to {last['eval/score']:.2f}"
    if moved < 0 and score_moved > 0:
        return Verdict(
            "bad",
            f"Over-optimisation: the score rose and {told} fell",
            f"On the held-out prompts {went}, while {score}: the reward is won at its cost.",
        )
    if moved == 0:
        return Verdict("neutral", f"{told} did not change beyond noise", f"On the held-out prompts {went}; {score}.")
    return Verdict(
        "good" if moved > 0 else "bad",
        f"{told} {'rose' if moved > 0 else 'fell'}",
        f"On the held-out prompts {went}; {score}.",
    )


def _shown(row: Row, key: str) -> str:
    return f"{100 * row[key]:.1f}"
