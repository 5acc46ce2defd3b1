"""The one process that writes metrics and samples, so that no two writers ever share a file or a W&B run."""

from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors.calls import resolve, resolve_blocking
from rayrlhf.actors.placement import QUIET, spawn
from rayrlhf.config import RunConfig
from rayrlhf.experience.summary import evaluation_metrics, judged_values, repeated_share, sample_rows
from rayrlhf.telemetry.sinks import MetricsWriter, WandbRun
from rayrlhf.types import ScoredTrajectory

_TIMEOUT = 120.0


class RecorderActor:
    """A MetricsWriter behind Ray."""

    def __init__(self, run_dir: str, wandb_run: WandbRun, last_steps: dict[str, int]) -> None:
        self._writer = MetricsWriter(Path(run_dir), wandb_run, last_steps=last_steps)

    def ready(self) -> str:
        """Answers, once the files are open, with what there is to say of the W&B run."""
        return self._writer.wandb_told

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Write one row of metrics."""
        self._writer.log(stage, step, metrics)

    def samples(self, step: int, *chunks: list[ScoredTrajectory]) -> dict[str, float]:
        """Write training samples of the ppo stage; answers with what only their texts tell."""
        scored = [item for chunk in chunks for item in chunk]
        self._writer.samples(sample_rows("ppo", step, scored))
        return {"rollout/repeated": repeated_share([(item.prompt_text, item.response_text) for item in scored])}

    def evaluation(self, step: int, *chunks: list[ScoredTrajectory]) -> tuple[dict[str, float], list[float]]:
        """Write held-out samples; answers with their eval/* metrics and what the guard watches."""
        scored = [item for chunk in chunks for item in chunk]
        self._writer.samples(sample_rows("eval", step, scored))
        return evaluation_metrics(scored), judged_values(scored)

    def close(self, summary: dict[str, Any]) -> None:
        """Flush everything, the run's facts too; the last call."""
        self._writer.close(summary)


class Recorder:
    """The driver's side of the recorder: rows are sent and awaited, so that a full disk is an error, not a silence."""

    def __init__(
        self, run_dir: Path, config: RunConfig, *, wandb_run_id: str | None, last_steps: dict[str, int]
    ) -> None:
        wandb_run = WandbRun(
            **config.wandb.model_dump(exclude={"group"}),
            group=config.wandb.group or config.name,
            job_type="-".join(config.stages),
            name=config.name,
            config=config.model_dump(mode="json"),
            run_id=wandb_run_id,
        )
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {**QUIET, "CUDA_VISIBLE_DEVICES": ""}}}
        self._actor = spawn(RecorderActor, options, str(run_dir), wandb_run, last_steps)
        self.last_steps: dict[str, int] = {}
        """The last step logged of each track, by this process."""
        self.told: str = resolve_blocking(self._actor.ready.remote(), what="the recorder to start", timeout=_TIMEOUT)

    async def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Write one row of metrics."""
        await self._call("log", stage, step, metrics)
        self.last_steps[stage] = step

    async def samples(self, step: int, chunks: list[Any]) -> dict[str, float]:
        """Write the training samples behind the references; what only their texts tell."""
        metrics: dict[str, float] = await self._call("samples", step, *chunks)
        return metrics

    async def evaluation(self, step: int, chunks: list[Any]) -> tuple[dict[str, float], list[float]]:
        """Write the held-out samples behind the references; their eval/* metrics and what the guard watches."""
        answer: tuple[dict[str, float], list[float]] = await self._call("evaluation", step, *chunks)
        return answer

    def close(self, summary: dict[str, Any]) -> None:
        """Flush, the run's facts too, and end the process."""
        resolve_blocking(self._actor.close.remote(summary), what="the recorder to close its files", timeout=_TIMEOUT)
        ray.kill(self._actor)

    async def _call(self, method: str, *args: Any) -> Any:
        return await resolve(
            getattr(self._actor, method).remote(*args), what=f"the recorder ({method})", timeout=_TIMEOUT
        )
