"""Where metrics and samples go: JSON lines always, Weights & Biases where it works."""

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from rayrlhf.files import storing
from rayrlhf.telemetry.events import read_events
from rayrlhf.telemetry.metrics import check_names
from rayrlhf.telemetry.wandb_history import Logged, logged_so_far

_TABLE_ROWS = 16
"""Samples of one step shown in W&B; samples.jsonl holds all."""

_START_SECONDS = 30.0
"""Longest wait for W&B's server at the start of a run."""

_FINISH_SECONDS = 60.0
"""Longest wait for uploads at the end of a run."""


_BEST: dict[str, Callable[[float, float], float]] = {
    **dict.fromkeys(("eval/score", "eval/gold", "eval/judge", "eval/accuracy"), max),
    **dict.fromkeys(("eval/loss", "eval/nll"), min),
}
"""Held-out metrics, and what is better of two values."""

_StartMode = Literal["online", "offline", "disabled"] | None


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """What a run tells Weights & Biases about itself."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    name: str
    config: dict[str, Any]
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    run_id: str | None = None
    """The W&B run to begin or to go on with."""


class JsonlSink:
    """Appends one JSON object a line, on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # A lone surrogate has no UTF-8 form; its backslash escape is the same character to a JSON reader.
        self._file: IO[str] = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - open as long as the run

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; a number that is not finite becomes null, which every JSON reader knows."""
        with storing(self._path):
            for row in rows:
                self._file.write(json.dumps({k: _jsonable(v) for k, v in row.items()}, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file. Every row is on disk, or its writer knows that it is not."""
        with contextlib.suppress(OSError):
            self._file.close()


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep_until(path: Path, last_steps: dict[str, int], unsure: Collection[tuple[str, int]] = ()) -> None:
    """Drop the rows of each stage after its last step, and a line torn by a kill; the rest stays as it is.

    Held-out samples (stage "eval") belong to the ppo stage. Rows of the stages and steps in `unsure` go too: they will
    be written again.
    """
    if not path.exists():
        return
    partial = path.with_name(f".{path.name}.partial")
    # Bytes, because a kill may tear a character too, and because text lines also end at characters JSON leaves raw.
    with open(path, "rb") as old, open(partial, "wb") as new:
        new.writelines(line.rstrip(b"\n") + b"\n" for line in old if _kept(line, last_steps, unsure))
        new.flush()
        os.fsync(new.fileno())
    os.replace(partial, path)


def _kept(line: bytes, last_steps: dict[str, int], unsure: Collection[tuple[str, int]]) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    if (row["stage"], row["step"]) in unsure:
        return False
    stage = "ppo" if row["stage"] == "eval" else row["stage"]
    return bool(row["step"] <= last_steps.get(stage, row["step"]))


class WandbSink:
    """One W&B run for all stages, each on its own step axis. No failure of W&B ever reaches the caller.

    What cannot be sent is kept on disk, for `wandb sync`: a run that cannot start online starts offline. A resumed run
    goes on with the same run and W&B's own `_step`. W&B takes no row back: a step that was logged before a kill and is
    trained again from the checkpoint keeps the values it was first logged with; metrics.jsonl has the newer ones.
    """

    def __init__(self, about: WandbRun, run_dir: Path) -> None:
        self._run: Any = None
        self.run_id = about.run_id
        self.told = ""
        """Where the run is, and how to send it; empty where there is none."""
        self._logged = Logged()
        self._failed = about.mode == "disabled"
        self._calling = False
        self._guard(lambda: self._start(about, run_dir, mode=_mode(about.mode)))
        if self._calling:
            self._failed = self._calling = False
            self._guard(lambda: self._start(about, run_dir, mode="offline"))

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Send one row, unless the step was sent before."""
        if step <= self._logged.rows.get(stage, -1):
            return
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._guard(lambda: self._send({**values, f"{stage}/step": step}))
        self._logged.rows[stage] = step

    def samples(self, rows: list[dict[str, Any]]) -> None:
        """Send the first samples of a step as a table, unless the step was sent before."""
        if not rows or rows[0]["step"] <= self._logged.samples.get(rows[0]["stage"], -1):
            return
        self._guard(lambda: self._sample_table(rows[:_TABLE_ROWS]))
        self._logged.samples[rows[0]["stage"]] = rows[0]["step"]

    def conclude(self, facts: dict[str, Any], events: list[dict[str, Any]]) -> None:
        """Put facts of the whole run into its W&B summary, and what happened to it, if anything did, into one table."""
        self._guard(lambda: self._run.summary.update(facts))
        if events:
            self._guard(lambda: self._send({"events": _table([_told_event(event) for event in events])}))

    def _send(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=self._logged.next_step, commit=True)
        self._logged.next_step += 1

    def close(self) -> None:
        """Finish the run; uploads that take too long are left to `wandb sync`."""
        finishing = threading.Thread(target=self._guard, args=(self._finish,), daemon=True)
        finishing.start()
        finishing.join(_FINISH_SECONDS)
        self._guard(lambda: _demand_finished(finishing))

    def _start(self, about: WandbRun, run_dir: Path, *, mode: _StartMode) -> None:
        import wandb

        if about.run_id is not None:
            self._logged = logged_so_far(run_dir, about.run_id)
        run_dir.joinpath("wandb").mkdir(exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", init_timeout=_START_SECONDS, disable_code=True)
        self._calling = mode == "online"
        self._run = wandb.init(
            project=about.project,
            entity=about.entity,
            name=about.name,
            id=about.run_id,
            group=about.group,
            job_type=about.job_type,
            tags=about.tags,
            resume="allow" if about.run_id else None,
            dir=run_dir,
            mode=mode,
            config=about.config,
            settings=settings,
        )
        self._calling = False
        self.run_id = self._run.id
        self._logged.next_step = max(self._logged.next_step, self._run.step)
        self.told = _told(self._run, run_dir)
        for stage in ("sft", "reward", "ppo"):
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def _finish(self) -> None:
        import wandb

        self._run.finish()
        # finish() may return before the file is written; the end of the service process is the proof of it.
        wandb.teardown()

    def _sample_table(self, rows: list[dict[str, Any]]) -> None:
        self._send({f"samples/{rows[0]['stage']}": _table(rows), "ppo/step": rows[0]["step"]})

    def _guard(self, act: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a logging service must never stop a training run
            self._failed = True
            then = "goes on offline" if self._calling else "is left out from here on"
            told = " ".join(str(error).split())
            print(f"rayrlhf: Weights & Biases failed and {then}: {told}", file=sys.stderr, flush=True)


def _table(rows: list[dict[str, Any]]) -> Any:
    import wandb

    columns = list(rows[0])
    data = [[row.get(column) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def _told_event(event: dict[str, Any]) -> dict[str, Any]:
    at = datetime.fromtimestamp(event["time"], UTC).isoformat(timespec="seconds")
    return {"time": at, **{name: event[name] for name in ("kind", "role", "number", "step", "text")}}


def _told(run: Any, run_dir: Path) -> str:
    if run.disabled:
        return ""
    if not run.offline:
        return f"W&B: run {run.id} at {run.url}."
    return f"W&B: run {run.id}, offline; to send it: wandb sync {run_dir}/wandb/offline-run-*-{run.id}*"


def best_values(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The best held-out values among rows of metrics.jsonl, and the steps they are of."""
    best: dict[str, float] = {}
    for row in rows:
        for name, better in _BEST.items():
            value, key = row.get(name), f"best/{row['stage']}/{name}"
            if value is not None and (key not in best or better(value, best[key]) != best[key]):
                best |= {key: value, f"{key}_step": row["step"]}
    return best


def _flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}/{name}") if isinstance(value, dict) else {f"{prefix}/{name}": value}
    return flat


def _demand_finished(finishing: threading.Thread) -> None:
    if finishing.is_alive():
        raise TimeoutError(f"the uploads did not end within {_FINISH_SECONDS:.0f} s; `wandb sync` sends the rest")


def _mode(mode: Literal["auto", "online", "offline", "disabled"]) -> _StartMode:
    """online, offline, or None where W&B's own variable decides; auto asks for credentials without a network call."""
    import wandb

    if mode != "auto":
        return mode
    if "WANDB_MODE" in os.environ:
        return None
    wandb.setup(wandb.Settings(silent=True, console="off"))
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


class MetricsWriter:
    """metrics.jsonl, samples.jsonl and W&B of one run, written by one process alone."""

    def __init__(
        self,
        run_dir: Path,
        wandb_run: WandbRun,
        *,
        last_steps: dict[str, int] | None = None,
        unsure: Collection[tuple[str, str, int]] = (),
    ) -> None:
        """Open the files.

        `last_steps` names the last step of each stage that a resumed run keeps; `unsure` the file, stage and step of rows
        that a writer before this one may have written or not, and that will be written again.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "samples.jsonl"):
            keep_until(
                run_dir / name, last_steps or {}, [(stage, step) for file, stage, step in unsure if file == name]
            )
        self._path = run_dir / "metrics.jsonl"
        self._metrics = JsonlSink(self._path)
        self._samples = JsonlSink(run_dir / "samples.jsonl")
        self._wandb = WandbSink(wandb_run, run_dir)

    @property
    def wandb_run_id(self) -> str | None:
        """The W&B run, to go on with after a restart."""
        return self._wandb.run_id

    @property
    def wandb_told(self) -> str:
        """Where the W&B run is, and how to send it; empty where there is none."""
        return self._wandb.told

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Write one row of declared metrics."""
        check_names(metrics)
        self._metrics.write([{"stage": stage, "step": step, "time": time.time(), **metrics}])
        self._wandb.log(stage, step, metrics)

    def samples(self, rows: list[dict[str, Any]]) -> None:
        """Write sample rows."""
        self._samples.write(rows)
        self._wandb.samples(rows)

    def close(self, summary: dict[str, Any] | None = None) -> None:
        """Finish all files; W&B is told the run's facts, its best values and its events, from before a restart too."""
        self._metrics.close()
        self._samples.close()
        with open(self._path, "rb") as rows:
            best = best_values(json.loads(row) for row in rows)
        self._wandb.conclude(best | _flat(summary or {}, "final"), read_events(self._path.parent))
        self._wandb.close()
