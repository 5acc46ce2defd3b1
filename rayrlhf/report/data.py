"""What a run's folder holds, read for its report; a run under way or broken off is read as far as it got."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rayrlhf.telemetry.events import read_events
from rayrlhf.telemetry.metrics import METRICS
from rayrlhf.telemetry.wording import Wording, wording

Row = dict[str, Any]

_POINTS = 300
"""Most points of a drawn curve; longer ones are averaged in groups, so that a page stays small."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The answers to the held-out prompts at one step."""

    step: int
    scores: dict[str, float]
    """By sample id, which is the same for the same prompt at every evaluation."""
    golds: dict[str, float]
    watched: dict[str, dict[str, float]]
    """By measure of ppo.watch, by sample id."""
    answers: tuple[Row, ...]
    """The rows themselves; kept for the first evaluation, the last and that of the exported policy alone."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as its folder tells it."""

    name: str
    stages: dict[str, list[Row]]
    """Rows of metrics.jsonl by stage."""
    evaluations: tuple[Evaluation, ...]
    """In the order of their steps."""
    summary: Row
    config: str
    """The resolved configuration; empty where there is none."""
    evaluation: Row
    """What evaluation.json of the reward model holds; empty where there is none."""
    refresh: Row
    """What refresh.json holds: the reward model judged by the policy's own pairs; empty where there is none."""
    exported_step: int | None
    """The evaluation whose policy was exported; None where the stage has not ended."""
    failure: str | None
    """Why the run ended, if it ended in an error and did not go on since."""
    events: tuple[Row, ...]
    """What happened beside the steps, over all starts of the run."""

    @property
    def right_or_wrong(self) -> bool:
        """Whether all scores are: every evaluation, or before the first every batch, has a share of right answers."""
        for area in ("eval", "reward"):
            rows = [row for row in self.stages.get("ppo", []) if row.get(f"{area}/score") is not None]
            if rows:
                return all(row.get(f"{area}/pass_rate") is not None for row in rows)
        return False

    @property
    def gold_is_score(self) -> bool:
        """Whether the true reward is what was rewarded, as with a verifier of a built-in task: the same at every evaluation."""
        pairs = [(row.get("eval/gold"), row.get("eval/score")) for row in self.stages.get("ppo", [])]
        known = [(gold, score) for gold, score in pairs if gold is not None and score is not None]
        return bool(known) and all(math.isclose(gold, score, abs_tol=1e-9) for gold, score in known)

    @property
    def words(self) -> Wording:
        """How the run is spoken of."""
        try:
            config = yaml.safe_load(self.config) or {}
        except yaml.YAMLError:
            config = {}
        sft = "sft" in self.stages or "sft" in config.get("stages", []) or not config
        return wording(config, sft=sft, right_or_wrong=self.right_or_wrong)

    def has(self, stage: str, name: str) -> bool:
        """Whether any row of the stage carries a number of that name."""
        return any(row.get(name) is not None for row in self.stages.get(stage, []))

    def last(self, stage: str, name: str) -> float | None:
        """The newest number of that name."""
        return next((row[name] for row in reversed(self.stages.get(stage, [])) if row.get(name) is not None), None)

    def columns(self, stage: str, *names: str) -> np.ndarray:
        """[rows, names] of the stage's rows that carry every name (`step` is one), thinned for drawing."""
        rows = [row for row in self.stages.get(stage, []) if all(row.get(name) is not None for name in names)]
        table = np.array([[row[name] for name in names] for row in rows], dtype=np.float64).reshape(
            len(rows), len(names)
        )
        if len(rows) <= _POINTS:
            return table
        groups = np.array_split(table, _POINTS)
        means, peaks = (np.array([reduce(group, axis=0) for group in groups]) for reduce in (np.mean, np.max))
        return np.where([name in METRICS and METRICS[name].reducer == "max" for name in names], peaks, means)


def read_run(run_dir: Path) -> RunRecord:
    """Read a run's folder; every file in it may be absent."""
    stages: dict[str, list[Row]] = {}
    for row in _rows(run_dir / "metrics.jsonl"):
        stages.setdefault(row["stage"], []).append(row)
    summary = _json(run_dir / "summary.json")
    config = run_dir / "config.yaml"
    exported = summary.get("stages", {}).get("ppo", {}).get("exported_step")
    return RunRecord(
        name=str(summary.get("run") or run_dir.resolve().name),
        stages=stages,
        evaluations=_evaluations(run_dir / "samples.jsonl", exported=exported),
        summary=summary,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        evaluation=_json(run_dir / "reward_model" / "evaluation.json"),
        refresh=_json(run_dir / "refresh.json"),
        exported_step=exported,
        failure=_failure(_json(run_dir / "failure.json"), stages),
        events=tuple(read_events(run_dir)),
    )


def _rows(path: Path) -> Iterator[Row]:
    if not path.exists():
        return
    with open(path, "rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # the line being written now, or torn by a kill
                continue
            yield row


def _json(path: Path) -> Row:
    loaded: Row = json.loads(path.read_bytes()) if path.exists() else {}
    return loaded


def _evaluations(path: Path, *, exported: int | None) -> tuple[Evaluation, ...]:
    scores: dict[int, dict[str, float]] = {}
    golds: dict[int, dict[str, float]] = {}
    watched: dict[int, dict[str, dict[str, float]]] = {}
    answers: dict[int, list[Row]] = {}
    for row in _rows(path):
        if row["stage"] != "eval":
            continue
        step, sample = row["step"], str(row["sample_id"])
        for table, name in ((scores, "score"), (golds, "gold")):
            values = table.setdefault(step, {})
            if row.get(name) is not None:
                values[sample] = row[name]
        for name, value in (row.get("watched") or {}).items():
            watched.setdefault(step, {}).setdefault(name, {})[sample] = value
        answers.setdefault(step, []).append(row)
        for middle in sorted(answers)[1:-1]:
            if middle != exported:
                del answers[middle]
    return tuple(
        Evaluation(
            step=step,
            scores=scores[step],
            golds=golds[step],
            watched=watched.get(step, {}),
            answers=tuple(answers.get(step, ())),
        )
        for step in sorted(scores)
    )


def _failure(record: Row, stages: dict[str, list[Row]]) -> str | None:
    newest = max((row["time"] for rows in stages.values() for row in rows[-1:]), default=0.0)
    if not record or record["time"] < newest:
        return None
    return f"{record['error']}: {record['message']}" if record["message"] else str(record["error"])
