"""The PPO stage: one control loop for synchronous and asynchronous training alike.

    prompts -> RolloutPool -> ScoringPool -> ExperienceBuffer -> LearnerGroup -> weights, version v -> RolloutPool

Two coroutines share the loop. The rollout loop may run ahead of the learner by `max_staleness` versions; with 0 it
waits for every update, which is on-policy PPO. Neither ever holds a trajectory: they pass references.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from rayrlhf.actors.calls import MOST_LOSSES, LostObjectError, together
from rayrlhf.actors.learner import LearnerGroup
from rayrlhf.actors.rollout import RolloutInfo, RolloutPool
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.config import RunConfig
from rayrlhf.data.prompts import PromptStream
from rayrlhf.errors import LedgerError, ModelError, ScoringError, WeightSyncError
from rayrlhf.experience.buffer import Chunk, ExperienceBuffer
from rayrlhf.experience.ledger import Ledger
from rayrlhf.learner.build import build_ppo
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.learner.process_group import Ranks
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.evaluation import Evaluator, sample_request
from rayrlhf.pipelines.gate import ParityGate
from rayrlhf.pipelines.guarding import GuardControl
from rayrlhf.pipelines.prompts import PromptSet
from rayrlhf.telemetry.console import Progress, evaluation_line
from rayrlhf.telemetry.wording import nothing_to_learn
from rayrlhf.types import RolloutRequest, SampleId


class PPOLoop:
    """The driver of one PPO stage."""

    def __init__(
        self, context: RunContext, prompts: PromptSet, *, policy_dir: str, reward_model_dir: str | None
    ) -> None:
        config = context.config
        self._context = context
        self._config = config
        self._prompts = prompts
        self._policy_dir = policy_dir
        self._build = partial(build_ppo, policy_dir=policy_dir, reward_model_dir=reward_model_dir)
        self._stream = PromptStream(prompts.train, prompts_per_step=config.ppo.prompts_per_step, seed=config.seed)
        self._ledger = Ledger()
        self._buffer = ExperienceBuffer()
        self._store = CheckpointStore(context.folder.checkpoints("ppo"), keep=config.checkpoint.keep)
        self._rollout = RolloutPool(
            config,
            model_dir=policy_dir,
            device=context.device,
            eos_token_ids=prompts.eos_token_ids,
            republish=lambda: self._learner.publish(self._bucket_count),
            tell=context.console.warn,
        )
        self._scoring = ScoringPool(
            config,
            reward_model_dir=reward_model_dir,
            reference_dir=policy_dir,
            device=context.device,
            tell=context.console.warn,
        )
        self._learner = LearnerGroup(config, device=context.device)
        self._evaluator = Evaluator(context, prompts.heldout, rollout=self._rollout, scoring=self._scoring)
        self._guard = GuardControl(context, self._learner, confirm=self._confirm)
        self._gate = ParityGate(context, self._rollout, self._learner, prompts.heldout)
        self._bucket_count = 0
        self._version = 0
        self._version_changed = asyncio.Condition()
        self._missing: Counter[int] = Counter()
        self._redrawn: Counter[int] = Counter()
        self._phase_seconds: dict[int, dict[str, float]] = {}
        self._before: dict[str, float] = {}
        self._worst_mismatch_p99 = 0.0
        self._warned = False

    async def run(self) -> dict[str, Any]:
        """Train to the last update and export; returns the stage's part of the summary."""
        started = time.monotonic()
        self._context.account.watch_restarts(self._restarts)
        try:
            await self._start()
            after = await self._guard.export(await self._train())
            tokens: int = await self._learner.call("tokens")
        finally:
            self._rollout.pool.stop()
            self._scoring.pool.stop()
            self._learner.stop()
        return self._summary(after, tokens=tokens, wall_seconds=time.monotonic() - started)

    # -- starting ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        build = self._build
        self._context.console.note("Starting the rollout, scoring and learner processes: about half a minute.")

        def learner(config: RunConfig, ranks: Ranks) -> PPOLearner:
            return build(config, ranks=ranks)

        await together(self._rollout.start(), self._scoring.start(), self._learner.start(learner))
        self._bucket_count = await self._learner.call("bucket_count")
        await self._gate.check(0, origin="loaded")
        await self._resume()
        figures = await self._first_publication()
        if not self._before:
            self._before = await self._evaluate(0)
            await self._context.recorder.log("ppo", 0, self._before | figures)
            self._context.console.note(f"Before the first update: {evaluation_line(self._before)}.")

    async def _resume(self) -> None:
        if not self._context.resume:
            return
        checkpoint, skipped = self._store.newest()
        if skipped:
            self._context.console.warn(f"Skipped incomplete checkpoints: {', '.join(skipped)}.")
        if checkpoint is None:
            return
        await self._learner.call("load", str(checkpoint.directory))
        self._version = await self._learner.call("version")
        self._ledger.load_state_dict(checkpoint.driver_state["ledger"])
        self._before = checkpoint.driver_state["before"]
        self._worst_mismatch_p99 = checkpoint.driver_state["worst_mismatch_p99"]
        self._guard.load_state_dict(checkpoint.driver_state["guard"])
        self._context.console.note(f"Resumed from {checkpoint.directory.name}.")

    async def _first_publication(self) -> dict[str, float]:
        """Give the engines the learner's weights for the first time, and hold both to it."""
        try:
            await self._publish()
        except WeightSyncError as error:
            if self._version > 0:
                raise
            reason = str(error).removesuffix("; replace the worker.").rstrip(".")
            raise ModelError(
                f"vLLM cannot take the weights of the policy {self._policy_dir} from the learner, so that it cannot be "
                f"trained here: {reason}; train a model of another architecture."
            ) from error
        figures = await self._gate.check(self._version, origin="published")
        self._context.console.note(
            f"Parity gate passed: |engine - learner| log-prob p50 {figures['parity/p50']:.1e}, "
            f"p99 {figures['parity/p99']:.1e} under version {self._version}."
        )
        return figures

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def _train(self) -> dict[str, float]:
        first, last = self._version, self._config.ppo.updates
        if self._guard.stopped or first >= last:
            metrics, _ = await self._evaluator.answer("eval", first)
            return metrics
        with self._context.console.progress("ppo", last) as progress:
            learner_loop = self._learner_loop(first, last, progress)
            _, after = await together(self._rollout_loop(first, last), learner_loop)
        self._ledger.abandon()
        final: dict[str, float] = after
        return final

    async def _rollout_loop(self, first: int, last: int) -> None:
        """Produces scored experience, a step at a time.

        Consumes the prompt stream; waits until the learner is at most `max_staleness` versions behind; unblocked by
        `_advance`.
        """
        for step in range(first, last):
            await self._until_version(step - self._config.ppo.max_staleness)
            if self._guard.stopped:
                return
            requests = self._lease(step)
            await self._buffer.open(step, len(requests))
            begun = time.monotonic()
            parts = await self._rollout.generate(requests, on_loss=self._ledger.reissue)
            generated = time.monotonic()
            for chunk in await self._scored(step, parts):
                await self._buffer.put(chunk)
            self._phase_seconds[step] = {
                "time/rollout": generated - begun,
                "time/scoring": time.monotonic() - generated,
                "perf/rollout_tokens_per_second": sum(info.tokens for _, info in parts) / (generated - begun),
            }

    async def _scored(self, step: int, parts: list[tuple[Any, RolloutInfo]]) -> list[Chunk]:
        return [chunk for chunks in await together(*(self._score(step, *part) for part in parts)) for chunk in chunks]

    async def _score(self, step: int, trajectories: Any, drawn: RolloutInfo) -> list[Chunk]:
        """Score what was drawn; trajectories that are lost on their way are drawn again first."""
        try:
            ref, info = await self._scoring.score(trajectories)
        except LostObjectError as loss:
            return await self._draw_again(step, drawn.sample_ids, loss)
        if not all(self._ledger.accept(info.sample_ids)):
            raise LedgerError(f"A second copy of a sample of step {step} came back from scoring.")
        self._drop(step, info.missing)
        return [Chunk(step=step, sample_ids=info.sample_ids, ref=ref, tokens=drawn.tokens, dropped=len(info.missing))]

    async def _draw_again(self, step: int, sample_ids: Sequence[SampleId], loss: LostObjectError) -> list[Chunk]:
        """Samples whose value is lost, drawn and scored once more under the same names and seeds."""
        self._redrawn[step] += 1
        if self._redrawn[step] > MOST_LOSSES * self._config.rollout.workers:
            raise loss
        self._context.console.warn(f"{loss} {len(sample_ids)} samples of step {step + 1} are drawn again.")
        self._ledger.reissue(sample_ids)
        wanted = set(sample_ids)
        requests = [request for request in self._requests(step) if request.sample_id in wanted]
        return await self._scored(step, await self._rollout.generate(requests, on_loss=self._ledger.reissue))

    def _drop(self, step: int, missing: Sequence[tuple[SampleId, str]]) -> None:
        """A response without a score is never trained; too many of them in one step are a failure with a cause."""
        if not missing:
            return
        self._ledger.drop(sample_id for sample_id, _ in missing)
        self._missing[step] += len(missing)
        share = self._missing[step] / self._config.ppo.samples_per_step
        if share > self._config.ppo.max_missing:
            raise ScoringError(
                f"{self._missing[step]} of the {self._config.ppo.samples_per_step} responses of step {step} have no score "
                f"(ppo.max_missing={self._config.ppo.max_missing:g}); the first because {missing[0][1]}."
            )

    async def _learner_loop(self, first: int, last: int, progress: Progress) -> dict[str, float]:
        """Trains each step of experience once and publishes the new version; returns the last evaluation.

        Consumes the buffer; waits for the step's experience, at most the call timeouts of the pools; unblocked by
        `_rollout_loop`.
        """
        timeout = self._config.rollout.call_timeout + self._config.scoring.call_timeout
        evaluation: dict[str, float] = {}
        for step in range(first, last):
            begun = time.monotonic()
            chunks, recorded = await self._handed_over(step, await self._buffer.take(step, timeout))
            taken = time.monotonic()
            metrics = recorded | await self._learner.update(step)
            trained = time.monotonic()
            self._ledger.train(step, (sample_id for chunk in chunks for sample_id in chunk.sample_ids))
            self._warn_once(nothing_to_learn(metrics, self._config.ppo.advantage, update=step + 1))
            metrics |= await self._publish()
            if self._gate.due(step + 1):
                metrics |= await self._gate.check(step + 1, origin="updated")
            # Absent where no token of the batch is of the learner's own version: then only the gate has measured.
            self._worst_mismatch_p99 = max(self._worst_mismatch_p99, metrics.get("mismatch/p99", 0.0))
            metrics |= self._phase_seconds.pop(step) | {"time/learner": trained - taken}
            await self._advance(step + 1)
            if (step + 1) % self._config.ppo.evaluate_every == 0 or step + 1 == last:
                evaluation = await self._evaluate(step + 1)
                metrics |= evaluation
            if (step + 1) % self._config.checkpoint.every == 0 or step + 1 == last:
                metrics["time/checkpoint"] = await self._checkpoint(step + 1)
            seconds = time.monotonic() - begun
            metrics |= self._step_metrics(seconds, trained - taken, tokens=sum(chunk.tokens for chunk in chunks))
            await self._context.recorder.log("ppo", step + 1, metrics)
            progress.update(step + 1, metrics)
            if self._guard.stopped:
                await self._advance(step + 1)
                break
        return evaluation

    async def _handed_over(self, step: int, chunks: list[Chunk]) -> tuple[list[Chunk], dict[str, float]]:
        """The step's chunks, held by the learner and written by the recorder, and what the texts tell.

        Nothing of the update has begun yet: chunks that are lost until then are drawn again.
        """
        while True:
            refs = [chunk.ref for chunk in chunks]
            try:
                await self._learner.receive(refs)
                return chunks, await self._context.recorder.samples(step + 1, refs)
            except LostObjectError as loss:
                lost = [chunk for chunk in chunks if chunk.ref.hex() == loss.object_id] or chunks
                again = await self._draw_again(step, [i for chunk in lost for i in chunk.sample_ids], loss)
                kept = [chunk for chunk in chunks if chunk not in lost]
                chunks = sorted(
                    (chunk for chunk in [*kept, *again] if chunk.sample_ids), key=lambda chunk: chunk.sample_ids[0]
                )

    def _lease(self, step: int) -> list[RolloutRequest]:
        requests = self._requests(step)
        self._ledger.issue(request.sample_id for request in requests)
        return requests

    def _requests(self, step: int) -> list[RolloutRequest]:
        requests = []
        drawn: Counter[int] = Counter()
        for prompt in self._stream.at(step):
            for _ in range(self._config.ppo.samples_per_prompt):
                sample_id = SampleId("ppo", step, prompt.prompt_id, drawn[prompt.prompt_id])
                drawn[prompt.prompt_id] += 1
                requests.append(sample_request(self._config.seed, sample_id, prompt))
        return requests

    async def _until_version(self, version: int) -> None:
        async with self._version_changed:
            await self._version_changed.wait_for(lambda: self._version >= version or self._guard.stopped)

    async def _advance(self, version: int) -> None:
        async with self._version_changed:
            self._version = version
            self._version_changed.notify_all()

    async def _publish(self) -> dict[str, float]:
        """The sync transaction: the learner publishes, every engine acknowledges, or the run stops."""
        begun = time.monotonic()
        weights = await self._learner.publish(self._bucket_count)
        await self._rollout.apply(weights)
        seconds = time.monotonic() - begun
        return {
            "sync/seconds": seconds,
            "time/sync": seconds,
            "sync/bytes": float(weights.total_bytes),
            "sync/version": float(weights.version),
        }

    # -- judging, saving, telling -----------------------------------------------------------------------------------

    async def _evaluate(self, step: int) -> dict[str, float]:
        """Answer the held-out prompts with the current policy, with the same seeds at every evaluation."""
        metrics, judged = await self._evaluator.answer("eval", step)
        return metrics | await self._guard.evaluated(step, metrics, judged)

    async def _confirm(self, step: int) -> dict[str, float]:
        """The same prompts, answered anew: what was picked as the best of several evaluations flatters itself."""
        metrics, _ = await self._evaluator.answer("confirm", step)
        return metrics

    async def _checkpoint(self, step: int) -> float:
        begun = time.monotonic()
        driver_state = {
            "ledger": self._ledger.state_dict(),
            "before": self._before,
            "worst_mismatch_p99": max(self._worst_mismatch_p99, self._gate.worst_p99),
            "guard": self._guard.state_dict(),
        }
        with self._store.write(step, driver_state) as directory:
            await self._learner.call("save", str(directory))
        self._guard.checkpointed()
        return time.monotonic() - begun

    def _step_metrics(self, seconds: float, learning: float, *, tokens: int) -> dict[str, float]:
        restarts = self._context.account.restarts("ppo")
        return self._ledger.metrics() | {
            "time/step": seconds,
            "time/learner_waiting": 1.0 - learning / seconds,
            "perf/tokens_per_second": tokens / seconds,
            "perf/memory_bytes": float(self._context.memory.current_bytes),
            "perf/restarts_rollout": float(restarts["rollout"]),
            "perf/restarts_scoring": float(restarts["scoring"]),
        }

    def _warn_once(self, warning: str | None) -> None:
        if warning is not None and not self._warned:
            self._warned = True
            self._context.console.warn(warning)

    def _restarts(self) -> dict[str, int]:
        return {"rollout": self._rollout.pool.restarts, "scoring": self._scoring.pool.restarts}

    def _summary(self, after: dict[str, float], *, tokens: int, wall_seconds: float) -> dict[str, Any]:
        ledger = self._ledger
        return {
            "wall_seconds": wall_seconds,
            "tokens": tokens,
            "updates": self._config.ppo.updates,
            "score_before": self._before["eval/score"],
            "score_after": after["eval/score"],
            "pass_rate_before": self._before.get("eval/pass_rate"),
            "pass_rate_after": after.get("eval/pass_rate"),
            "gold_before": self._before.get("eval/gold"),
            "gold_after": after.get("eval/gold"),
            "gold_best": self._prompts.gold_best,
            "kl_to_reference": after["eval/kl"],
            "mismatch_p99": max(self._worst_mismatch_p99, self._gate.worst_p99),
            "samples_trained": ledger.trained,
            "samples_lost": ledger.lost,
            "samples_duplicated": ledger.duplicated,
            "samples_dropped": ledger.dropped,
            "restarts": self._context.account.restarts("ppo"),
            "policy_versions": self._version,
            **self._guard.summary(last_step=self._version),
        }
