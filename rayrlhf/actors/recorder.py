"""The one process that writes metrics and samples, so that no two writers ever share a file or a W&B run."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import ray

from rayrlhf.actors.calls import MOST_LOSSES, ActorLostError, resolve, resolve_blocking
from rayrlhf.actors.placement import clerk_options, end, spawn
from rayrlhf.config import RunConfig
from rayrlhf.errors import DeadlineError, RayrlhfError
from rayrlhf.experience.spool import write_batch
from rayrlhf.experience.summary import evaluation_metrics, judged_values, repeated_share, sample_rows
from rayrlhf.telemetry.metrics import watch_metric
from rayrlhf.telemetry.sinks import MetricsWriter, WandbRun
from rayrlhf.types import SampleId, ScoredTrajectory

_TIMEOUT = 120.0

Rows = tuple[str, str, int]
"""What one call writes: file, stage and step."""


class RecorderActor:
    """A MetricsWriter behind Ray."""

    def __init__(
        self,
        run_dir: str,
        wandb_run: WandbRun,
        last_steps: dict[str, int],
        unsure: Collection[Rows] = (),
        watch: Sequence[str] = (),
    ) -> None:
        self._watch = watch
        self._writer = MetricsWriter(Path(run_dir), wandb_run, last_steps=last_steps, unsure=unsure)

    def ready(self) -> str:
        """Answers, once the files are open, with what there is to say of the W&B run."""
        return self._writer.wandb_told

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Write one row of metrics."""
        self._writer.log(stage, step, metrics)

    def samples(
        self, step: int, wanted: Collection[SampleId], batch: Path | None, *chunks: list[ScoredTrajectory]
    ) -> dict[str, float]:
        """Write the wanted training samples of the ppo stage, by name, and all of them as the batch they are, where asked.

        Answers with what only their texts tell.
        """
        scored = [item for chunk in chunks for item in chunk if item.trajectory.sample_id in wanted]
        scored.sort(key=lambda item: item.trajectory.sample_id)
        if batch is not None:
            write_batch(batch, scored)
        self._writer.samples(sample_rows("ppo", step, scored))
        return {"rollout/repeated": repeated_share([(item.prompt_text, item.response_text) for item in scored])}

    def evaluation(
        self, purpose: str, step: int, *chunks: list[ScoredTrajectory]
    ) -> tuple[dict[str, float], list[float]]:
        """Write held-out samples under `purpose`; answers with their eval/* metrics and what the guard watches."""
        scored = [item for chunk in chunks for item in chunk]
        scored.sort(key=lambda item: item.trajectory.sample_id)
        watched = self._watched(scored)
        self._writer.samples(sample_rows(purpose, step, scored, watched))
        means = {watch_metric(name): fmean(row[name] for row in watched) for name in self._watch}
        return evaluation_metrics(scored) | means, judged_values(scored)

    def _watched(self, scored: Sequence[ScoredTrajectory]) -> list[dict[str, float]]:
        if not self._watch:
            return []
        from rayrlhf.reward.text_metrics import measured

        return measured(self._watch, [item.response_text for item in scored], [item.reference or "" for item in scored])

    def close(self, summary: dict[str, Any]) -> None:
        """Flush everything, the run's facts too; the last call."""
        self._writer.close(summary)


class Recorder:
    """The driver's side of the recorder: rows are sent and awaited, so that a full disk is an error, not a silence.

    Its process runs on the driver's node, where the run's files are. When it dies or hangs, another goes on with the files:
    rows that were not acknowledged are cut off, if they are there, and written again.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        *,
        wandb_run_id: str | None,
        last_steps: dict[str, int],
        tell: Callable[[str], None],
    ) -> None:
        self._run_dir = str(run_dir)
        self._tell = tell
        self._wandb_run = WandbRun(
            **config.wandb.model_dump(exclude={"group"}),
            group=config.wandb.group or config.name,
            job_type="-".join(config.stages),
            name=config.name,
            config=config.model_dump(mode="json"),
            run_id=wandb_run_id,
        )
        self._watch = list(config.ppo.watch)
        self._unanswered: set[Rows] = set()
        self._actor = self._spawn(last_steps)
        self.last_steps: dict[str, int] = {}
        """The last step logged of each track, by this process."""
        self.told: str = resolve_blocking(self._actor.ready.remote(), what="the recorder to start", timeout=_TIMEOUT)

    async def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Write one row of metrics."""
        await self._call("log", ("metrics.jsonl", stage, step), stage, step, metrics)
        self.last_steps[stage] = step

    async def samples(
        self, step: int, wanted: Collection[SampleId], chunks: list[Any], batch: Path | None
    ) -> dict[str, float]:
        """Write the wanted training samples behind the references, to `batch` too; what only their texts tell."""
        rows = ("samples.jsonl", "ppo", step)
        metrics: dict[str, float] = await self._call("samples", rows, step, set(wanted), batch, *chunks)
        return metrics

    async def evaluation(self, purpose: str, step: int, chunks: list[Any]) -> tuple[dict[str, float], list[float]]:
        """Write the held-out samples behind the references; their eval/* metrics and what the guard watches."""
        rows = ("samples.jsonl", purpose, step)
        answer: tuple[dict[str, float], list[float]] = await self._call("evaluation", rows, purpose, step, *chunks)
        return answer

    def close(self, summary: dict[str, Any]) -> None:
        """Flush, the run's facts too, and end the process.

        What fails here is told, since every row is on disk and the work is done or has failed.
        """
        try:
            resolve_blocking(
                self._actor.close.remote(summary), what="the recorder to close its files", timeout=_TIMEOUT
            )
        except RayrlhfError as error:
            self._tell(f"{error} metrics.jsonl and samples.jsonl are whole; W&B may lack its last rows.")
        end(self._actor)

    async def _call(self, method: str, rows: Rows, *args: Any) -> Any:
        self._unanswered.add(rows)
        try:
            for _ in range(MOST_LOSSES):
                actor = self._actor
                try:
                    return await self._ask(actor, method, *args)
                except (ActorLostError, DeadlineError) as loss:
                    self._replace(actor, loss)
            return await self._ask(self._actor, method, *args)
        finally:
            self._unanswered.discard(rows)

    async def _ask(self, actor: Any, method: str, *args: Any) -> Any:
        return await resolve(getattr(actor, method).remote(*args), what=f"the recorder ({method})", timeout=_TIMEOUT)

    def _replace(self, lost: Any, loss: RayrlhfError) -> None:
        if self._actor is not lost:
            return  # Another call saw the loss first.
        end(lost)  # one that hangs must not go on with files that are another's now
        self._tell(f"{loss} Another one goes on with the same files.")
        self._actor = self._spawn({}, unsure=sorted(self._unanswered))

    def _spawn(self, last_steps: dict[str, int], unsure: Collection[Rows] = ()) -> Any:
        options = clerk_options(ray.get_runtime_context().get_node_id())
        return spawn(RecorderActor, options, self._run_dir, self._wandb_run, last_steps, unsure, self._watch)
