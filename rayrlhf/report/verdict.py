"""Whether the true reward followed the proxy, or right answers rose, in words: from the held-out evaluations."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rayrlhf.report.data import Evaluation, Row, RunRecord
from rayrlhf.telemetry.metrics import watch_metric

_STANDARD_ERRORS = 3.0
"""A change counts beyond this many standard errors of the paired differences: the peak is picked among noisy means."""

_SHARE_OF_RANGE = 0.1
"""Where single answers are unknown, a change counts beyond this share of the range of all evaluations."""


_MANY_EQUAL = 0.5
"""Share of groups with nothing to teach from which on the reader is told."""


@dataclass(frozen=True)
class Verdict:
    """One finding."""

    tone: Literal["good", "bad", "neutral"]
    headline: str
    sentence: str


def judge(record: RunRecord) -> Verdict | None:
    """Compare score and gold over the evaluations, or count right answers; None where there are fewer than two."""
    rows = [row for row in record.stages.get("ppo", []) if row.get("eval/score") is not None]
    if len(rows) >= 2 and record.right_or_wrong and (record.gold_is_score or not record.has("ppo", "eval/gold")):
        kept = [row for row in rows if record.exported_step is None or row["step"] <= record.exported_step]
        verdict = _by_right_answers(record, kept)
        return verdict if len(kept) == len(rows) else _went_on(verdict, kept[-1], rows[-1])
    gold_rows = [row for row in rows if row.get("eval/gold") is not None]
    kept = [row for row in gold_rows if record.exported_step is None or row["step"] <= record.exported_step]
    if len(gold_rows) >= 2 and len(kept) < len(gold_rows):
        return _kept(record, gold_rows, kept)
    if len(gold_rows) >= 2:
        return _with_gold(record, gold_rows)
    if len(rows) < 2:
        return None
    before, after = (signed(row["eval/score"]) for row in (rows[0], rows[-1]))
    return Verdict(
        "neutral",
        "No gold reward to judge by",
        f"The score of the held-out answers by {record.words.the_judge} went from {before} to {after}{_at_kl(rows[-1])}. "
        f"This task has no gold reward: whether the policy got better or only learnt to please what it is rewarded by is "
        f"for the answers below to show.",
    )


def _by_right_answers(record: RunRecord, rows: list[Row]) -> Verdict:
    """With a verifier the score is the goal itself: nothing stands between them that could be over-optimised."""
    first, last = rows[0], rows[-1]
    peak = max(rows, key=lambda row: row["eval/pass_rate"])
    before, top, after = (f"{row['eval/pass_rate']:.0%}" for row in (first, peak, last))
    known = _interval(last)
    if direction(record, rows, peak, last, "score") < 0:
        return Verdict(
            "bad",
            "Right answers became fewer",
            f"Of the held-out answers {before} were right at first, {top} at update {peak['step']} and {after}{known} at "
            f"update {last['step']}{_at_kl(last)}.",
        )
    if direction(record, rows, first, last, "score") > 0:
        equal = record.last("ppo", "reward/groups_equal")
        solved = (
            f" In {equal:.0%} of the last groups all answers scored alike, which teach nothing: harder prompts would "
            f"teach more."
            if equal is not None and equal > _MANY_EQUAL
            else ""
        )
        return Verdict(
            "good",
            f"Right answers rose from {before} to {after}",
            f"Of {record.words.starting_policy}'s held-out answers {before} were right, of those after {last['step']} "
            f"updates of {record.words.algorithm} {after}{known}{_at_kl(last)}.{solved}",
        )
    return Verdict(
        "neutral",
        "No change beyond noise",
        f"Of the held-out answers {before} were right at first and {after}{known} after {last['step']} updates"
        f"{_at_kl(last)}.",
    )


def _went_on(verdict: Verdict, exported: Row, last: Row) -> Verdict:
    after = f"{last['eval/pass_rate']:.0%} at update {last['step']}{_interval(last)}"
    return replace(
        verdict, sentence=f"{verdict.sentence} The policy of update {exported['step']} was exported; it was {after}."
    )


def _interval(row: Row) -> str:
    low, high = row.get("eval/pass_rate_low"), row.get("eval/pass_rate_high")
    return "" if low is None or high is None else f" (95 % interval {100 * low:.0f} to {high:.0%})"


def _with_gold(record: RunRecord, rows: list[Row]) -> Verdict:
    first, last = rows[0], rows[-1]
    peak = max(rows, key=lambda row: row["eval/gold"])
    gold = f"{signed(first['eval/gold'])} to {signed(last['eval/gold'])}"
    score = f"{signed(first['eval/score'])} to {signed(last['eval/score'])}"
    score_moved = direction(record, rows, first, last, "score")
    gold_moved = direction(record, rows, first, last, "gold")
    if direction(record, rows, peak, last, "gold") < 0:
        return _fallen(peak, last, first=first, score_moved=direction(record, rows, peak, last, "score"))
    if gold_moved > 0 and score_moved > 0:
        return Verdict(
            "good",
            "Gold followed the score",
            f"On the held-out prompts gold and score rose together: gold from {gold}, the score from {score}"
            f"{_at_kl(last)}.{_gains(record)}",
        )
    if score_moved > 0:
        return Verdict(
            "bad",
            "The score rose without gold",
            f"On the held-out prompts the score rose from {score}, but gold did not move beyond noise ({gold})"
            f"{_at_kl(last)}: what is rewarded is being pleased, not the true goal.",
        )
    if gold_moved > 0:
        return Verdict(
            "neutral",
            "Gold rose",
            f"On the held-out prompts gold rose from {gold}, while the score did not rise beyond noise ({score})"
            f"{_at_kl(last)}.",
        )
    return Verdict(
        "neutral",
        "No change beyond noise",
        f"On the held-out prompts neither gold ({gold}) nor the score ({score}) rose beyond noise{_at_kl(last)}.",
    )


def _kept(record: RunRecord, rows: list[Row], kept: list[Row]) -> Verdict:
    """The exported policy is an earlier one: what it reached, and what those after it lost."""
    first, best, last = rows[0], kept[-1], rows[-1]
    fell = direction(record, rows, best, last, "gold") < 0
    rose = direction(record, rows, first, best, "gold") > 0
    after = f"by update {last['step']} gold was {signed(last['eval/gold'])}{_at_kl(last)}"
    after += ", a fall beyond noise" if fell else ", which is within noise"
    scores = f"the score went from {signed(best['eval/score'])} to {signed(last['eval/score'])}"
    gold = f"gold from {signed(first['eval/gold'])} to {signed(best['eval/gold'])}"
    if not rose:
        return Verdict(
            "bad",
            "No policy was better than the first",
            f"The guard exported the policy of update {best['step']}, the best by gold on the held-out prompts: {gold}, not "
            f"beyond noise; {after}, while {scores}.",
        )
    return Verdict(
        "good",
        f"The guard kept the policy of update {best['step']}",
        f"The exported policy is the best by gold on the held-out prompts: {gold}{_at_kl(best)}. Training went on: {after}, "
        f"while {scores}.",
    )


def _fallen(peak: Row, last: Row, *, first: Row, score_moved: int) -> Verdict:
    if peak is first:
        fall = f"gold fell from {signed(first['eval/gold'])} before the first update to {signed(last['eval/gold'])}{_at_kl(last)}"
    else:
        fall = (
            f"gold peaked at {signed(peak['eval/gold'])} (step {peak['step']}{_at_kl(peak)}) "
            f"and ended at {signed(last['eval/gold'])}{_at_kl(last)}"
        )
    scores = f"from {signed(peak['eval/score'])} to {signed(last['eval/score'])}"
    if score_moved < 0:
        return Verdict(
            "bad",
            "The policy got worse",
            f"On the held-out prompts {fall}; the score fell with it, {scores}: the policy lost what it had learnt.",
        )
    rest = f"while the score kept rising, {scores}" if score_moved > 0 else f"while the score held, {scores}"
    return Verdict("bad", "Over-optimisation", f"On the held-out prompts {fall}, {rest}: over-optimisation.")


def direction(record: RunRecord, rows: list[Row], start: Row, end: Row, what: str) -> int:
    """-1, 0 or 1: whether `what` fell or rose from one evaluation to another beyond noise: score, gold or watch_NAME."""
    change = end[f"eval/{what}"] - start[f"eval/{what}"]
    before, after = (_values(_at(record, row["step"]), what) for row in (start, end))
    shared = sorted(before.keys() & after.keys())
    if len(shared) >= 8:
        differences = np.array([after[sample] - before[sample] for sample in shared])
        noise = _STANDARD_ERRORS * float(differences.std(ddof=1)) / math.sqrt(len(shared))
    else:
        seen = [row[f"eval/{what}"] for row in rows]
        noise = _SHARE_OF_RANGE * (max(seen) - min(seen))
    return 0 if abs(change) <= noise else (1 if change > 0 else -1)


def start_spread(record: RunRecord, what: Literal["score", "gold"]) -> tuple[float, float] | None:
    """Mean and standard deviation over the starting policy's held-out answers; None where they say nothing."""
    values = list(_values(_at(record, 0), what).values())
    if len(values) < 8 or float(np.std(values, ddof=1)) == 0.0:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _gains(record: RunRecord) -> str:
    gains = []
    for name, spread in (("eval/score", start_spread(record, "score")), ("eval/gold", start_spread(record, "gold"))):
        last = record.last("ppo", name)
        if spread is None or last is None:
            return ""
        gains.append((last - spread[0]) / spread[1])
    return (
        f" Measured in standard deviations of {record.words.starting_policy}'s answers, the score gained {gains[0]:.1f} and gold "
        f"{gains[1]:.1f}."
    )


def signed(value: float) -> str:
    """Two decimals, with a minus sign rather than a hyphen."""
    return f"{value:.2f}".replace("-", "−")


def _at(record: RunRecord, step: int) -> Evaluation | None:
    return next((evaluation for evaluation in record.evaluations if evaluation.step == step), None)


def _values(evaluation: Evaluation | None, what: str) -> dict[str, float]:
    if evaluation is None:
        return {}
    if what.startswith("watch_"):
        return next((own for name, own in evaluation.watched.items() if watch_metric(name) == f"eval/{what}"), {})
    return evaluation.scores if what == "score" else evaluation.golds


def _at_kl(row: Row) -> str:
    return f" at KL {row['eval/kl']:z.1f}" if row.get("eval/kl") is not None else ""
