"""What each stage optimises."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rayrlhf.config.base import Node
from rayrlhf.config.estimator import with_defaults_of_the_estimator
from rayrlhf.config.guard import GuardConfig
from rayrlhf.config.rewards import JudgeReward, ModelReward, RewardTerm, TextMetric


class OptimConfig(Node):
    """AdamW with a warm-up and a decay."""

    lr: float = Field(default=1.0e-5, ge=0.0)
    betas: list[float] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(default=1.0e-8, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    min_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the last step, as a share of lr."""


class SupervisedConfig(Node):
    """Supervised fine-tuning: next-token loss on responses."""

    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever the epochs say."""
    prompts_per_step: int = Field(default=32, ge=1)
    """Rows (SFT: demonstrations, reward: pairs) of one optimizer step."""
    micro_batch_tokens: int = Field(default=4096, ge=2)
    """Padded tokens of one forward pass, at most."""
    evaluate_every: int = Field(default=50, ge=1)
    evaluate_rows: int = Field(default=1000, ge=1)
    """Held-out rows of an evaluation during training, at most, always the same ones; at the end all are judged."""
    optim: OptimConfig = OptimConfig()


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning."""

    train_on_prompt: bool = False
    """Train prompt tokens too."""


class KLConfig(Node):
    """The pull towards the reference policy."""

    placement: Literal["reward", "loss"] = "reward"
    """In the reward of each token, or a term of the loss; default: reward for gae and reinforce, loss for rloo and grpo."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Default: k1 in the reward, where nothing else is used, and k3 in the loss, where k1's gradient is zero on average."""
    coef: float = Field(default=0.05, ge=0.0)
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: float = Field(default=6.0, gt=0.0)
    """adaptive: the wanted KL per response, in nats. The coefficient follows kl/reference, and kl/behaviour where a batch is
    too old to tell it."""
    horizon: int = Field(default=10_000, ge=1)
    """adaptive: samples over which the coefficient may double."""

    @model_validator(mode="after")
    def _reward_is_k1(self) -> "KLConfig":
        if self.placement == "reward" and self.estimator != "k1":
            raise ValueError(f"ppo.kl.estimator={self.estimator} needs ppo.kl.placement=loss; in the reward use k1")
        return self


class PPOConfig(Node):
    """Proximal policy optimisation, and its critic-free relatives by `advantage`."""

    updates: int = Field(default=100, ge=1)
    """Steps of the control loop: one batch of experience each."""
    prompts_per_step: int = Field(default=32, ge=1)
    samples_per_prompt: int = Field(default=4, ge=1)
    micro_batch_tokens: int = Field(default=8192, ge=2)
    epochs: int = Field(default=2, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(default=2, ge=1)
    """Optimizer updates of one pass."""
    max_staleness: int = Field(default=0, ge=0)
    """Largest allowed learner version minus trajectory version; 0 is synchronous."""
    old_logprobs: Literal["recompute", "rollout"] = "recompute"
    """The PPO denominator: the learner's own log-probs before the update, or the engine's when sampled."""
    importance_cap: float | None = Field(default=None, gt=0.0)
    """Truncate the correction exp(old - rollout) of each token here; default: 2.0 when max_staleness > 0, else no
    correction, or a whole one within the bands below where one is given."""
    importance_band: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: a token whose exp(old - rollout) lies outside gives the clipped objective nothing, before importance_cap
    truncates the others. IcePop (Ling Team 2025) is [0.5, 5.0] with importance_cap 5.0. The critic, baselines and the
    KL and entropy of the loss see masked tokens all the same. Both bands need old_logprobs: recompute."""
    sequence_band: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: the same of all tokens of a response whose geometric mean of exp(old - rollout) lies outside (Geo-Mask,
    Li, Liu et al. 2025, typically [0.5, 2.0])."""

    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = "gae"
    """gae uses the critic; rloo and grpo a group baseline; reinforce the batch mean. Where they are not given,
    whiten_advantages, normalize_reward, scale, kl.placement and kl.estimator follow from it."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    whiten_advantages: bool = True
    """Mean 0 and variance 1 over the valid tokens of the whole batch; default: true for gae and reinforce, false for
    rloo and grpo, whose solved prompts a shift of that mean would push down."""
    uncertainty_weight: float = Field(default=0.0, ge=0.0)
    """w: the advantages of a response are multiplied by 1 / (1 + w x spread^2), last of all, so that it counts less the
    less the members of an ensemble agree on it (inverse-variance weights, Mai et al. 2022); the spread is in standard
    deviations of the held-out scores. Returns, baselines and a KL in the loss stay as they are; a KL in the reward is part
    of the advantages. 0: not at all. Needs a reward model with members or heads among ppo.rewards."""
    scale: Literal["std", "none"] = "none"
    """grpo: divide each group's scores by their deviation (its default), or not (Dr. GRPO, Liu et al. 2025)."""
    loss_aggregation: Literal["token", "sequence"] = "token"
    """Every token of a minibatch counts the same (DAPO, Yu et al. 2025), or every response does, by the mean over its
    tokens (GRPO, Shao et al. 2024), which makes a token of a long response count less."""

    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.2, gt=0.0)
    dual_clip: float | None = Field(default=None, gt=1.0)
    """Bound on ratio * advantage for negative advantages."""
    value_clip: float | None = Field(default=0.2, gt=0.0)
    entropy_coef: float = Field(default=0.0, ge=0.0)
    target_kl: float | None = Field(default=None, gt=0.0)
    """Stop the passes over a batch once the mean KL(old || new) per token passes this."""
    critic_warmup_updates: int = Field(default=0, ge=0)
    """First updates in which only the critic learns."""
    kl: KLConfig = Field(default_factory=KLConfig)

    rewards: list[RewardTerm] = Field(default=[ModelReward()], min_length=1)
    """What a response is scored by: all of them, or those that the `rewards` of its prompt's row name."""
    watch: list[TextMetric] = Field(default_factory=list)
    """Measures of the held-out responses beside their references that are not rewarded: logged, drawn, and named as
    over-optimisation where one falls while the score rises."""
    max_missing: float = Field(default=0.1, ge=0.0, lt=1.0)
    """A response without a score is dropped and counted; a larger share of a step stops the run."""
    reward_clip: float | None = Field(default=None, gt=0.0)
    """Scores are clipped to [-c, c] after normalisation."""
    normalize_reward: bool = True
    """Subtract the scores' running mean and divide by their running standard deviation; default: true for gae and
    reinforce, false for rloo and grpo."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0)
    """Subtracted from the reward of a response that was cut at max_new_tokens."""
    truncation: Literal["score", "mask", "bootstrap"] = "score"
    """A cut response is trained on its score, left out of the loss, or trained on gamma times the critic's value of
    where it was cut, in place of its score."""

    guard: GuardConfig = GuardConfig()

    optim: OptimConfig = OptimConfig(lr=1.0e-6, schedule="constant")
    critic_optim: OptimConfig = OptimConfig(lr=5.0e-6, schedule="constant")
    evaluate_every: int = Field(default=20, ge=1)
    evaluate_prompts: int = Field(default=64, ge=1)
    """Held-out prompts of an evaluation, one response each."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_estimator(cls, tree: Any) -> Any:
        return with_defaults_of_the_estimator(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _consistent(self) -> "PPOConfig":
        samples = self.prompts_per_step * self.samples_per_prompt
        if samples % self.minibatches:
            raise ValueError(
                f"ppo.minibatches={self.minibatches} must divide prompts_per_step * samples_per_prompt = {samples}"
            )
        if self.advantage in ("rloo", "grpo") and self.samples_per_prompt < 2:
            raise ValueError(
                f"ppo.advantage={self.advantage} needs ppo.samples_per_prompt >= 2, not {self.samples_per_prompt}"
            )
        if self.truncation == "bootstrap" and self.advantage != "gae":
            raise ValueError(f"ppo.truncation=bootstrap needs a critic: ppo.advantage=gae, not {self.advantage}")
        if self.truncation == "bootstrap" and self.missing_eos_penalty > 0:
            raise ValueError(
                f"ppo.missing_eos_penalty={self.missing_eos_penalty:g} is taken from the score of a cut response, which "
                f"ppo.truncation=bootstrap replaces by the critic's value: set one of the two"
            )
        if self.scale == "std" and self.advantage != "grpo":
            raise ValueError(
                f"ppo.scale=std divides by a group's deviation, which ppo.advantage=grpo alone does, not {self.advantage}"
            )
        bands = {"ppo.importance_band": self.importance_band, "ppo.sequence_band": self.sequence_band}
        given = {key: band for key, band in bands.items() if band is not None}
        for key, (low, high) in given.items():
            if not 0 < low < 1 < high:
                raise ValueError(f"{key}=[{low:g}, {high:g}] must be [low, high] with 0 < low < 1 < high")
        if given and self.old_logprobs == "rollout":
            raise ValueError(
                f"{' and '.join(given)} would mask nothing with ppo.old_logprobs=rollout, where every weight is 1: use "
                f"ppo.old_logprobs=recompute"
            )
        if self.guard.judge is not None and self.guard.judge in [model.path for model in self.reward_models]:
            raise ValueError(f"ppo.guard.judge={self.guard.judge} is rewarded too: what is optimised cannot judge")
        if self.critic_warmup_updates >= self.updates:
            raise ValueError(
                f"ppo.critic_warmup_updates={self.critic_warmup_updates} must be below ppo.updates={self.updates}"
            )
        return self

    @model_validator(mode="after")
    def _terms_told_apart(self) -> "PPOConfig":
        names = [term.called for term in self.rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"ppo.rewards has {names.count(twice)} terms called {twice!r}: give each a name of its own"
            )
        return self

    @model_validator(mode="after")
    def _one_engine(self) -> "PPOConfig":
        paths = [str(term.path) for term in self.judges if term.path is not None]
        if len(paths) > 1:
            raise ValueError(
                f"ppo.rewards has {len(paths)} judges with a path ({', '.join(paths)}) and a scoring worker holds one vLLM "
                f"engine: write their principles into one, or serve the others and give their urls"
            )
        return self

    @property
    def judges(self) -> list[JudgeReward]:
        return [term for term in self.rewards if isinstance(term, JudgeReward)]

    @property
    def reward_models(self) -> list[ModelReward]:
        return [term for term in self.rewards if isinstance(term, ModelReward)]

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def uses_critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def effective_importance_cap(self) -> float | None:
        return self.importance_cap if self.importance_cap is not None else (2.0 if self.max_staleness > 0 else None)

    @property
    def corrects_off_policy(self) -> bool:
        """Whether the objective is weighted by how far the policy at the update's start is from the one that drew."""
        return (self.effective_importance_cap, self.importance_band, self.sequence_band) != (None, None, None)
