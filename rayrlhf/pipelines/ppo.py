"""The PPO stage around its control loop: start and resume, evaluate and save after each update, export and summarise."""

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from rayrlhf.actors.calls import alongside, together
from rayrlhf.actors.control import Request
from rayrlhf.actors.rollout import RolloutPool
from rayrlhf.actors.rollout_worker import rollout_workers
from rayrlhf.actors.scoring import ScoringPool, scoring_workers
from rayrlhf.actors.store import StoreWatch
from rayrlhf.config import RunConfig
from rayrlhf.errors import ModelError, StoppedError, WeightSyncError
from rayrlhf.learner.build import build_ppo
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.learner.process_group import Ranks
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.evaluation import Evaluator
from rayrlhf.pipelines.gate import ParityGate, probe_of
from rayrlhf.pipelines.guarding import GuardControl
from rayrlhf.pipelines.loop import ControlLoop, Update
from rayrlhf.pipelines.ppo_summary import ppo_summary
from rayrlhf.pipelines.prompts import GroupStream, PromptSet
from rayrlhf.pipelines.saving import Saving, resume_point
from rayrlhf.pipelines.scaling import Autoscaler, goes_on_from
from rayrlhf.pipelines.status import ppo_status
from rayrlhf.pipelines.swapping import RewardSwap
from rayrlhf.pipelines.trainer import Trainer
from rayrlhf.telemetry.console import Progress, evaluation_line
from rayrlhf.telemetry.events import Event
from rayrlhf.telemetry.wording import nothing_to_learn, position_bias


class PPOStage:
    """The driver of one PPO stage."""

    def __init__(
        self, context: RunContext, prompts: PromptSet, *, policy_dir: str, reward_model_dir: str | None
    ) -> None:
        config = context.config
        self._context = context
        self._config = config
        self._prompts = prompts
        self._policy_dir = policy_dir
        build = partial(build_ppo, policy_dir=policy_dir, reward_model_dir=reward_model_dir)

        def learner(config: RunConfig, ranks: Ranks) -> PPOLearner:
            return build(config, ranks=ranks)

        self._trainer = Trainer(context, learner)
        self._rollout = RolloutPool(
            config,
            spawn=rollout_workers(
                config, model_dir=policy_dir, device=context.device, eos_token_ids=prompts.eos_token_ids
            ),
            republish=self._trainer.publish,
            on_loss=lambda groups: self._loop.lost(groups),
            probe=probe_of(context, prompts.heldout),
            tell=context.events.tell,
        )
        self._scoring = ScoringPool(
            config,
            spawn=scoring_workers(
                config, reward_model_dir=reward_model_dir, reference_dir=policy_dir, device=context.device
            ),
            tell=context.events.tell,
        )
        self._loop = ControlLoop(
            config,
            groups=GroupStream(prompts.train, config),
            rollout=self._rollout,
            scoring=self._scoring,
            learner=self._trainer,
            after=self._after,
            tell=context.events.tell,
        )
        self._evaluator = Evaluator(context, prompts.heldout, rollout=self._rollout, scoring=self._scoring)
        self._guard = GuardControl(context, self._trainer, confirm=self._confirm)
        self._gate = ParityGate(context, self._rollout, self._trainer, prompts.heldout)
        self._store = StoreWatch(context.events.tell)
        self._swap = RewardSwap(context, self._scoring, self._trainer)
        self._saving = Saving(context, self._trainer, driver_state=self._driver_state)
        self._progress: Progress | None = None
        self._before: dict[str, float] = {}
        self._last: dict[str, float] = {}
        """eval/* of the newest evaluation."""
        self._worst_mismatch_p99 = self._staleness = 0.0
        self._row_at: float | None = None
        """When the row before was made, by the loop's clock."""
        self._checkpoint_seconds: float | None = None
        """What a checkpoint has taken since then."""
        self._warned: set[str] = set()

    async def run(self) -> dict[str, Any]:
        """Train to the last update and export; returns the stage's part of the summary."""
        started = time.monotonic()
        self._context.account.watch_restarts(self._restarts)
        try:
            tokens = await alongside(
                self._work(), self._rollout.pool.run(), self._scoring.pool.run(), *self._autoscaler()
            )
        finally:
            self._trainer.stop()
        return self._summary(tokens=tokens, wall_seconds=time.monotonic() - started)

    def _autoscaler(self) -> list[Coroutine[Any, Any, None]]:
        """Runs beside the pools where a role's size is the driver's to choose."""
        config, loop, tell = self._config, self._loop, self._context.events.tell
        if config.rollout.autoscale is None and config.scoring.autoscale is None:
            return []
        return [Autoscaler(config, loop=loop, rollout=self._rollout, scoring=self._scoring, tell=tell).run()]

    async def _work(self) -> int:
        with self._context.control.attached(self._status, self._carry_out):
            await self._start()
            await self._train()
        self._last = await self._guard.export(self._last)
        tokens: int = await self._trainer.call("tokens")
        return tokens

    # -- starting ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._context.console.note("Starting the rollout, scoring and learner processes: about half a minute.")
        await together(self._rollout.pool.ready(), self._scoring.pool.ready(), self._trainer.start())
        await self._gate.check(0, origin="loaded")
        await self._resume()
        figures = await self._first_publication()
        if not self._before:
            self._before = await self._evaluate(0)
            await self._context.recorder.log("ppo", 0, self._before | figures)
            self._context.console.note(f"Before the first update: {evaluation_line(self._before)}.")

    async def _resume(self) -> None:
        point = resume_point(self._context.folder, self._config) if self._context.resume else None
        if point is None:
            return
        if point.skipped:
            self._context.console.warn(f"Skipped incomplete checkpoints: {', '.join(point.skipped)}.")
        state = point.driver_state
        await self._trainer.resume(point.checkpoint, point.updates)
        await self._swap.restore(state["rewards"])
        self._loop.version = point.step
        self._loop.ledger.load_state_dict(state["ledger"])
        self._before = state["before"]
        self._worst_mismatch_p99 = state["worst_mismatch_p99"]
        self._guard.load_state_dict(state["guard"])
        self._context.console.note(f"Resumed from {point.told}.")

    async def _first_publication(self) -> dict[str, float]:
        """Give the engines the learner's weights for the first time, and hold both to it."""
        version = self._loop.version
        try:
            await self._loop.publish(version)
            await self._rollout.settled()
        except WeightSyncError as error:
            if version > 0:
                raise
            reason = str(error).removesuffix("; replace the worker.").rstrip(".")
            raise ModelError(
                f"vLLM cannot take the weights of the policy {self._policy_dir} from the learner, so that it cannot be "
                f"trained here: {reason}; train a model of another architecture."
            ) from error
        figures = await self._gate.check(version, origin="published")
        self._context.console.note(
            f"Parity gate passed: |engine - learner| log-prob p50 {figures['parity/p50']:.1e}, "
            f"p99 {figures['parity/p99']:.1e} under version {version}."
        )
        return figures

    # -- training ---------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        last = self._config.ppo.updates
        if self._guard.stopped or self._loop.version >= last:
            self._last, _ = await self._evaluator.answer("eval", self._loop.version)
            return
        with self._context.console.progress("ppo", last) as self._progress:
            await together(self._loop.run(last))
        if self._loop.version < last and not self._guard.stopped:
            raise StoppedError(f"Stopped after update {self._loop.version} of {last}, as asked.")

    async def _after(self, update: Update) -> bool:
        """Check, evaluate, save and tell, as it is due; whether training goes on."""
        version, last, metrics = update.step + 1, self._config.ppo.updates, update.metrics
        self._warn_once("advantage", nothing_to_learn(metrics, self._config.ppo.advantage, update=version))
        self._warn_once("judge", position_bias(metrics, update=version))
        if self._gate.due(version):
            metrics |= await self._gate.check(version, origin="updated")
        # Absent where no token of the batch is of the learner's own version: then only the gate has measured.
        self._worst_mismatch_p99 = max(self._worst_mismatch_p99, metrics.get("mismatch/p99", 0.0))
        if version % self._config.ppo.evaluate_every == 0 or version == last:
            self._last = await self._evaluate(version)
            metrics |= self._last
        metrics |= self._step_metrics(update) | await self._store.look(version)
        # The row before what a resumed run goes on from: a kill between the two makes it again and loses none.
        await self._context.recorder.log("ppo", version, metrics)
        self._saving.updated()
        stopping = self._context.control.stop_asked
        if self._saving.due(version) or version == last or stopping:
            self._checkpoint_seconds = await self._saving.checkpoint(version)
            self._guard.checkpointed()
        assert self._progress is not None
        self._progress.update(version, metrics)
        self._context.control.at("ppo", version, last)
        self._staleness = metrics.get("rollout/staleness", 0.0)
        return not (self._guard.stopped or stopping)

    # -- under control ----------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        return ppo_status(
            self._loop,
            self._rollout,
            self._scoring,
            self._trainer,
            now=time.monotonic(),
            restarts=self._restarts(),
            staleness=self._staleness,
            max_staleness=self._config.ppo.max_staleness,
        )

    async def _carry_out(self, request: Request) -> str:
        """Resize the pools or replace a reward model, as it is asked."""
        if request.kind == "swap":
            return self._swap.ask(self._loop, **request.arguments)
        pools = {"rollout": self._rollout.pool, "scoring": self._scoring.pool}
        told = []
        for role, size in request.arguments.items():
            told.append(f"{role} workers {pools[role].size} -> {size}")
            await pools[role].resize(size)
        text = f"Scaling: {', '.join(told)}." + goes_on_from(self._config, list(request.arguments))
        self._context.events.tell(Event(kind="scale", text=text, step=self._loop.version))
        return text

    # -- judging, saving, telling -----------------------------------------------------------------------------------

    async def _evaluate(self, step: int) -> dict[str, float]:
        """Answer the held-out prompts with the current policy, with the same seeds at every evaluation."""
        metrics, judged = await self._evaluator.answer("eval", step)
        return metrics | await self._guard.evaluated(step, metrics, judged)

    async def _confirm(self, step: int) -> dict[str, float]:
        """The same prompts, answered anew: what was picked as the best of several evaluations flatters itself."""
        metrics, _ = await self._evaluator.answer("confirm", step)
        return metrics

    def _driver_state(self) -> dict[str, Any]:
        return {
            "ledger": self._loop.ledger.state_dict(),
            "before": self._before,
            "worst_mismatch_p99": max(self._worst_mismatch_p99, self._gate.worst_p99),
            "guard": self._guard.state_dict(),
            "rewards": self._swap.state_dict(),
        }

    def _step_metrics(self, update: Update) -> dict[str, float]:
        """The driver's own part of a row, which covers the time since the row before."""
        restarts = self._context.account.restarts("ppo")
        now = asyncio.get_running_loop().time()
        seconds = now - (update.begun if self._row_at is None else self._row_at)
        checkpoint = {} if self._checkpoint_seconds is None else {"time/checkpoint": self._checkpoint_seconds}
        self._row_at, self._checkpoint_seconds = now, None
        own = {
            "time/step": seconds,
            "time/learner_waiting": 1.0 - update.learning / seconds,
            "perf/tokens_per_second": update.tokens / seconds,
            "perf/memory_bytes": float(self._context.memory.current_bytes),
            "perf/workers_rollout": float(len(self._rollout.pool.serving)),
            "perf/workers_scoring": float(len(self._scoring.pool.serving)),
            "perf/restarts_rollout": float(restarts["rollout"]),
            "perf/restarts_scoring": float(restarts["scoring"]),
            "perf/restarts_learner": float(restarts["learner"]),
        }
        return self._loop.ledger.metrics() | own | checkpoint

    def _warn_once(self, of: str, warning: str | None) -> None:
        if warning is not None and of not in self._warned:
            self._warned.add(of)
            self._context.console.warn(warning)

    def _restarts(self) -> dict[str, int]:
        return {
            "rollout": self._rollout.pool.restarts,
            "scoring": self._scoring.pool.restarts,
            "learner": self._trainer.restarts,
        }

    def _summary(self, *, tokens: int, wall_seconds: float) -> dict[str, Any]:
        facts = ppo_summary(
            before=self._before,
            after=self._last,
            ledger=self._loop.ledger,
            version=self._loop.version,
            gold_best=self._prompts.gold_best,
            mismatch_p99=max(self._worst_mismatch_p99, self._gate.worst_p99),
            restarts=self._context.account.restarts("ppo"),
            tokens=tokens,
            updates=self._config.ppo.updates,
            wall_seconds=wall_seconds,
        )
        return facts | self._guard.summary(last_step=self._loop.version)
