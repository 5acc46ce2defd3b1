"""The parity gate of a PPO run: before the first update, after it, and every so many updates, on the path that is used.

Weights reach an engine in two ways, from the policy's directory when it starts and from the learner ever after. Both
are held against the learner, and the second again once an update has changed the weights: what an engine failed to
take over cannot show before.
"""

from collections.abc import Sequence

from rayrlhf.actors.calls import repeated_when_lost
from rayrlhf.actors.rollout import Probe, RolloutPool
from rayrlhf.errors import WeightSyncError
from rayrlhf.models.device import resolve_dtype_name
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.prompts import fixed_groups
from rayrlhf.pipelines.trainer import Trainer
from rayrlhf.rollout.parity import Origin, check_parity, parity_thresholds
from rayrlhf.types import PolicyVersion, Prompt


def probe_of(context: RunContext, prompts: Sequence[Prompt]) -> Probe:
    """What a worker that joins is held against the others with: three held-out prompts, and the gate's bound."""
    config = context.config
    dtype = resolve_dtype_name(config.rollout.dtype, context.device)
    thresholds = parity_thresholds(config.parity, engine_dtype=dtype, learner_dtype=dtype)
    groups = fixed_groups(config.seed, "probe", prompts[:3], size=1)
    return Probe(requests=tuple(group.requests[0] for group in groups), tolerance=thresholds.p99)


class ParityGate:
    """Compares engines and learner on fixed prompts; ParityError stops the run."""

    def __init__(self, context: RunContext, rollout: RolloutPool, learner: Trainer, prompts: Sequence[Prompt]) -> None:
        config = context.config
        self._config = config
        self._rollout = rollout
        self._learner = learner
        count = max(config.parity.prompts, config.rollout.workers)
        # Groups of one go round the workers, so that none is left out.
        self._groups = fixed_groups(config.seed, "parity", prompts[:count], size=1)
        self._thresholds = parity_thresholds(
            config.parity,
            engine_dtype=resolve_dtype_name(config.rollout.dtype, context.device),
            learner_dtype=resolve_dtype_name(config.learner.dtype, context.device),
        )
        self._loaded_p99 = 0.0
        self.worst_p99 = 0.0

    def due(self, version: PolicyVersion) -> bool:
        """Whether `version` is to be compared: the first that differs from version 0, and every so many after it."""
        ppo = self._config.ppo
        warmup = ppo.critic_warmup_updates if ppo.uses_critic else 0
        return version == warmup + 1 or version % self._config.parity.every == 0

    @repeated_when_lost
    async def check(self, version: PolicyVersion, *, origin: Origin) -> dict[str, float]:
        """Compare responses drawn wholly under `version`, which the learner must have; the figures, as metrics.

        Call it while the learner stands still and every engine has acknowledged `version`.
        """
        parts = await self._rollout.generate(self._groups)
        drawn = min(part.min_version for part in parts)
        if drawn != version:
            raise WeightSyncError(
                f"The parity gate's responses were drawn under version {drawn} where the learner has version {version}."
            )
        mismatch = await self._learner.mismatch([part.ref for part in parts])
        check_parity(
            mismatch,
            self._thresholds,
            temperature=self._config.sampling.temperature,
            origin=origin,
            version=version,
            loaded_p99=self._loaded_p99,
        )
        if origin == "loaded":
            self._loaded_p99 = mismatch.p99
        self.worst_p99 = max(self.worst_p99, mismatch.p99)
        return {
            "parity/p50": mismatch.p50,
            "parity/p95": mismatch.p95,
            "parity/p99": mismatch.p99,
            "parity/max": mismatch.max,
            "parity/outside": mismatch.outside,
        }
