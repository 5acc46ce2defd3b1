"""Where things run: the resources of each role, and the services around them."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayrlhf.config.base import Node

Dtype = Literal["auto", "float32", "bfloat16"]
OnUpdate = Literal["recompute", "keep", "drain"]

MIN_OBJECT_STORE_BYTES = 75 * 2**20
"""The smallest object store that Ray starts with."""


class RoleConfig(Node):
    """What one process of a role asks Ray for."""

    cpus: float | None = Field(default=None, ge=0.0)
    """Logical CPUs, for placement; default: 1, or an equal share of a core where the roles would not fit otherwise."""
    gpus: float | None = Field(default=None, ge=0.0)
    """GPUs; default: 1 on CUDA, 0 on CPU."""
    threads: int | None = Field(default=None, ge=1)
    """Compute threads; default: cpus rounded down, at least 1."""
    cores: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Cores of its node that each of its processes keeps to; default: any."""
    memory_gib: float = Field(default=0.0, ge=0.0)
    """Memory reserved with Ray; 0 reserves none."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources, to pin a role to some nodes."""
    dtype: Dtype = "auto"
    """auto: bfloat16 on CUDA, float32 on CPU."""
    start_timeout: float = Field(default=300.0, gt=0.0)
    """Seconds a process may take to become ready."""
    call_timeout: float = Field(default=1800.0, gt=0.0)
    """Seconds one call may take."""
    stall_timeout: float = Field(default=120.0, gt=0.0)
    """Seconds a process with work may show no progress before it is replaced."""
    max_restarts: int = Field(default=3, ge=0)
    """Replacements of dead processes within `restart_window` seconds before the run gives up."""
    restart_window: float = Field(default=600.0, gt=0.0)

    @property
    def compute_threads(self) -> int:
        return self.threads or max(1, int(self.placed_cpus))

    @property
    def placed_cpus(self) -> float:
        return 1.0 if self.cpus is None else self.cpus


class AutoscaleConfig(Node):
    """How far the driver may change the number of a role's workers while the run goes on."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)


class ScaledRoleConfig(RoleConfig):
    """A role whose number of workers may change while the run goes on."""

    workers: int = Field(default=1, ge=1)
    """At the start."""
    autoscale: AutoscaleConfig | None = None
    """Bounds, `{min: 1, max: 8}`, within which the driver grows what the learner waits for and shrinks what idles; default:
    the number stays as it is."""

    @model_validator(mode="after")
    def _starts_within_its_bounds(self) -> "ScaledRoleConfig":
        bounds = self.autoscale
        if bounds is not None and not bounds.min <= self.workers <= bounds.max:
            raise ValueError(
                f"workers={self.workers} with autoscale.min={bounds.min} and autoscale.max={bounds.max} must be such that "
                f"min <= workers <= max"
            )
        return self


class RolloutConfig(ScaledRoleConfig):
    """vLLM engines."""

    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    """Key-value cache of a CPU engine."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, lt=1.0)
    """Share of a GPU's memory for a CUDA engine."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Sequences decoded together."""
    enforce_eager: bool | None = None
    """Skip graph compilation; default: true on CPU, false on CUDA."""
    prefix_caching: bool = True
    on_update: OnUpdate = "recompute"
    """What new weights mean for responses in work. recompute: their keys and values are computed anew, so that a token's
    log-prob is that of the version its span names. keep: they go on over the old ones, which costs nothing, and a
    log-prob is of what was sampled from, no single version. drain: new weights wait for them, one version a response."""


class ScoringConfig(ScaledRoleConfig):
    """The terms of the reward, and the reference policy."""

    max_pending: int = Field(default=4, ge=1)
    """Requests a worker holds, the one it scores included; it merges those that wait. More of them wait at the driver."""
    micro_batch_tokens: int = Field(default=8192, ge=2)
    function_timeout_s: float = Field(default=60.0, gt=0.0)
    """Seconds one call of a reward function may take; a longer one is ended, and its sample has no score."""


class LearnerConfig(RoleConfig):
    """The processes that hold the optimizer; more than one shard the model with FSDP2."""

    processes: int = Field(default=1, ge=1)
    bucket_mib: float = Field(default=64.0, gt=0.0)
    """Size of a published weight bucket."""
    max_nonfinite_steps: int = Field(default=3, ge=1)
    """Consecutive skipped steps with non-finite gradients before the run stops."""


class ParityConfig(Node):
    """The gate between engine and learner; null thresholds follow the dtype."""

    prompts: int = Field(default=16, ge=1)
    """Held-out prompts whose responses are compared; at least one a rollout worker."""
    every: int = Field(default=20, ge=1)
    """Updates between comparisons; the first is before the first update, the second after it."""
    p50: float | None = Field(default=None, gt=0.0)
    p99: float | None = Field(default=None, gt=0.0)
    max_outside: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of tokens whose probability ratio lies outside [0.9, 1.1]."""


class CheckpointConfig(Node):
    """Complete checkpoints of the training state."""

    every: int = Field(default=20, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Newest complete checkpoints kept."""
    spool: bool = True
    """Keep the ppo stage's batches since the last checkpoint on disk: a learner that dies is brought up to date with them,
    and --resume goes on from the last update instead of the last checkpoint."""
    spool_gib: float = Field(default=4.0, gt=0.0)
    """A checkpoint is written early where they would grow beyond this."""


class WandbConfig(Node):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when logged in, else offline."""
    project: str = "rayrlhf"
    entity: str | None = None
    group: str | None = None
    """What the run is shown together with; default: the run's name, so that a name's later trainings lie beside it."""
    tags: list[str] = Field(default_factory=list)


class ClusterConfig(Node):
    """The Ray cluster."""

    address: str | None = None
    """Cluster to join; default: the one a Ray job runs in, else a local one for this run."""
    object_store_gib: float = 1.0
    """Object store of a local cluster; at least 0.0733."""

    @field_validator("object_store_gib")
    @classmethod
    def _store_that_starts(cls, gib: float) -> float:
        if gib * 2**30 < MIN_OBJECT_STORE_BYTES:
            raise ValueError(f"{gib:g} is below 0.0733 GiB ({MIN_OBJECT_STORE_BYTES:,} bytes), Ray's smallest store")
        return gib
