"""The training loop of the supervised stages, and supervised fine-tuning by it."""

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rayrlhf.actors.calls import resolve
from rayrlhf.actors.learner import Build, LearnerGroup, LearnerLostError, lost_too_often
from rayrlhf.actors.placement import QUIET
from rayrlhf.actors.pool import PAUSE_SECONDS, nodes_changed
from rayrlhf.actors.replica import RestartBudget
from rayrlhf.config import RunConfig, SupervisedConfig
from rayrlhf.data.bad_rows import tell
from rayrlhf.data.encoded import Encoded, encoded_demonstrations
from rayrlhf.errors import StoppedError
from rayrlhf.learner.base import prepare_base
from rayrlhf.learner.build import build_sft
from rayrlhf.learner.process_group import Ranks
from rayrlhf.learner.supervised import SupervisedLearner
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.context import RunContext
from rayrlhf.telemetry.events import Event


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one training run came to."""

    metrics: dict[str, float]
    """eval/* of the weights that were kept."""
    tokens: int


async def run_sft(context: RunContext) -> dict[str, Any]:
    """Supervised fine-tuning, its model exported; the stage's part of the summary."""
    started = time.monotonic()
    base_dir = await base_directory(context)
    await encode_first(context, encoded_demonstrations, base_dir)

    def build(config: RunConfig, ranks: Ranks) -> SupervisedLearner:
        return build_sft(config, base_dir=base_dir, ranks=ranks)

    trained = await train(
        context, "sft", context.config.sft, build, output=context.folder.model_dir("sft"), keep_best=False
    )
    return {
        "wall_seconds": time.monotonic() - started,
        "tokens": trained.tokens,
        "loss": trained.metrics["eval/nll"],
    }


async def train(
    context: RunContext, track: str, settings: SupervisedConfig, build: Build, *, output: Path, keep_best: bool
) -> Trained:
    """Train one model under the name `track` and write it to `output`: the last weights, or the best held out.

    A learner that is lost is replaced by one that goes on from the last checkpoint: its steps are the lost one's.
    """
    context.console.note(f"Starting the learner of {track}.")
    training = _Training(context, track, settings, keep_best=keep_best)
    budget = RestartBudget(most=context.config.learner.max_restarts, window=context.config.learner.restart_window)
    clock = asyncio.get_running_loop().time
    losses, pause = 0, PAUSE_SECONDS
    while True:
        learner = LearnerGroup(context.config, device=context.device, name=f"{track}.{losses}" if losses else track)
        begun, started = clock(), False
        try:
            await learner.start(build)
            started = True
            if losses:
                text = f"{track}: another learner serves, {clock() - begun:.0f} s after it was asked for."
                context.events.tell(
                    Event(kind="replacement", text=text, role="learner", number=0, **learner.first_place)
                )
            return await training.run(learner, output)
        except LearnerLostError as loss:
            losses += 1
            if not budget.bear(clock(), node=None, born=begun):
                raise lost_too_often(loss, context.config) from loss
            text = f"{track}: {loss} A new learner starts, and goes on from {training.saved}."
            context.events.tell(Event(kind="death", text=text, role="learner", number=0, **learner.first_place))
        finally:
            learner.stop()
        if not started:
            # Until Ray has marked a dead node it sends the new learner there too.
            if await nodes_changed(pause):
                budget.forgive()
            pause *= 2.0


async def encode_first(
    context: RunContext, encode: Callable[[RunConfig, str], Encoded[Any]], tokenizer_dir: str
) -> None:
    """Have a stage's data encoded before its learner starts, out of this process; what was met on the way is told."""
    config = context.config
    work = ray.remote(_encode).options(num_cpus=0, max_retries=0, runtime_env={"env_vars": QUIET})
    task = work.remote(encode, config, tokenizer_dir)
    tell(await resolve(task, what="the data to be encoded", timeout=config.data.prepare_timeout))


def _encode(encode: Callable[[RunConfig, str], Encoded[Any]], config: RunConfig, tokenizer_dir: str) -> tuple[str, ...]:
    return encode(config, tokenizer_dir).told


async def base_directory(context: RunContext) -> str:
    """The model directory a run starts from; made on the spot for a model with random weights."""
    config, folder = context.config, context.folder
    if config.model.path is not None:
        return config.model.path
    directory = folder.model_dir("base")
    if not (directory / "config.json").exists():
        task = ray.remote(prepare_base).options(num_cpus=0, max_retries=0, runtime_env={"env_vars": QUIET})
        await resolve(
            task.remote(config, str(directory)),
            what="the base model to be made",
            timeout=config.learner.start_timeout,
        )
    return str(directory)


class _Training:
    """The steps of one supervised learner: train, evaluate, keep the best, checkpoint."""

    def __init__(self, context: RunContext, track: str, settings: SupervisedConfig, *, keep_best: bool) -> None:
        self._context = context
        self._track = track
        self._settings = settings
        self._learner: LearnerGroup
        self._keep_best = keep_best
        self._store = CheckpointStore(context.folder.checkpoints(track), keep=context.config.checkpoint.keep)
        self._candidate = context.folder.candidate(track)
        self._best: dict[str, float] | None = None
        """eval/* at the evaluation with the least held-out loss so far."""
        self._evaluated: dict[str, float] = {}
        """eval/* at the newest evaluation."""
        self._resumes = context.resume
        self._done = 0
        """Steps that are logged, and evaluated where that was due: a learner that repeats them only trains."""

    @property
    def saved(self) -> str:
        """Where a new learner goes on from."""
        newest, _ = self._store.newest()
        return "the start" if newest is None else newest.directory.name

    async def run(self, learner: LearnerGroup, output: Path) -> Trained:
        """Bring the learner to where the one before it was saved, and train on to the end."""
        self._learner = learner
        total: int = await self._learner.call("total_steps")
        step = await self._restore()
        self._resumes = True  # whoever comes after this learner
        every = self._context.config.checkpoint.every
        with self._context.console.progress(self._track, total) as progress:
            while step < total:
                begun = time.monotonic()
                metrics: dict[str, float] = await self._learner.call("train_step")
                step += 1
                if step <= self._done:
                    continue
                if step % self._settings.evaluate_every == 0 or step == total:
                    self._evaluated = await self._evaluate(whole=step == total and not self._keep_best)
                    metrics |= self._evaluated
                metrics["time/step"] = time.monotonic() - begun
                metrics["perf/memory_bytes"] = float(self._context.memory.current_bytes)
                await self._context.recorder.log(self._track, step, metrics)
                self._done = step
                progress.update(step, metrics)
                self._context.control.at(self._track, step, total)
                stopping = self._context.control.stop_asked and step < total
                if (step % every == 0 and step < total) or stopping:
                    await self._checkpoint(step)
                if stopping:
                    raise StoppedError(f"Stopped after step {step} of {total} of {self._track}, as asked.")
        tokens: int = await self._learner.call("tokens")
        self._context.account.add_tokens(self._track.partition("_")[0], self._track, tokens)
        return Trained(metrics=await self._finish(output), tokens=tokens)

    async def _evaluate(self, *, whole: bool) -> dict[str, float]:
        """On a part of the held-out rows; the best weights are chosen by one and the same part, to the end."""
        evaluated: dict[str, float] = await self._learner.call("evaluate", whole)
        if self._keep_best and (self._best is None or evaluated["eval/loss"] < self._best["eval/loss"]):
            await self._learner.call("export", str(self._candidate))
            self._best = evaluated
        return evaluated

    async def _checkpoint(self, step: int) -> None:
        with self._store.write(step, {"best": self._best}) as directory:
            await self._learner.call("save", str(directory))

    async def _finish(self, output: Path) -> dict[str, float]:
        if self._best is None:
            await self._learner.call("export", str(output))
            return self._evaluated or await self._learner.call("evaluate", True)
        shutil.rmtree(output, ignore_errors=True)
        self._candidate.rename(output)
        return self._best

    async def _restore(self) -> int:
        if not self._resumes:
            return 0
        checkpoint, skipped = self._store.newest()
        if skipped:
            self._context.console.warn(f"Skipped incomplete checkpoints: {', '.join(skipped)}.")
        if checkpoint is None:
            return 0
        await self._learner.call("load", str(checkpoint.directory))
        if self._done == 0:
            self._best = checkpoint.driver_state.get("best")
            self._context.console.note(f"Resumed from {checkpoint.directory.name}.")
        self._done = max(self._done, checkpoint.step)
        return checkpoint.step
