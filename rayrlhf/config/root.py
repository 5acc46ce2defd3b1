"""The whole of a run's configuration, and the rules that cross its parts."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config.base import Node
from rayrlhf.config.data import DataConfig
from rayrlhf.config.model import ModelConfig, SamplingConfig
from rayrlhf.config.reward import RewardConfig
from rayrlhf.config.runtime import (
    CheckpointConfig,
    ClusterConfig,
    LearnerConfig,
    ParityConfig,
    RolloutConfig,
    ScoringConfig,
    WandbConfig,
)
from rayrlhf.config.stages import PPOConfig, SFTConfig

Stage = Literal["sft", "reward", "ppo"]


class RunConfig(Node):
    """One run: its stages, what they learn from, and where they run."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Names the run's folder; default: the stem of the configuration file."""
    output_dir: str = "runs"
    seed: int = Field(default=0, ge=0)
    stages: list[Stage] = Field(default=["sft", "reward", "ppo"], min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where the cluster has GPUs."""

    model: ModelConfig
    data: DataConfig
    sampling: SamplingConfig = SamplingConfig()
    sft: SFTConfig = SFTConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()

    rollout: RolloutConfig = RolloutConfig()
    scoring: ScoringConfig = ScoringConfig()
    learner: LearnerConfig = LearnerConfig()
    parity: ParityConfig = ParityConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    wandb: WandbConfig = WandbConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def reward_max_length(self) -> int:
        """Longest prompt plus response that the reward model reads, in its tokens."""
        return self.reward.max_length or self.model.max_length

    @model_validator(mode="after")
    def _stage_order(self) -> "RunConfig":
        order = ["sft", "reward", "ppo"]
        if self.stages != [s for s in order if s in self.stages]:
            raise ValueError(f"stages={self.stages} must be distinct and in the order sft, reward, ppo")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> "RunConfig":
        need = self.data.max_prompt_tokens + self.sampling.max_new_tokens
        if "ppo" in self.stages and need > self.model.max_length:
            raise ValueError(
                f"data.max_prompt_tokens + sampling.max_new_tokens = {need} exceeds model.max_length = {self.model.max_length}"
            )
        context = (self.model.init or {}).get("max_position_embeddings")
        if context is not None and self.model.max_length > context:
            raise ValueError(
                f"model.max_length = {self.model.max_length} exceeds model.init.max_position_embeddings = {context}"
            )
        for stage, key, tokens in (
            ("sft", "sft.micro_batch_tokens", self.sft.micro_batch_tokens),
            ("reward", "reward.micro_batch_tokens", self.reward.micro_batch_tokens // 2),
            ("ppo", "ppo.micro_batch_tokens", self.ppo.micro_batch_tokens),
            ("ppo", "scoring.micro_batch_tokens", self.scoring.micro_batch_tokens),
        ):
            if stage not in self.stages:
                continue
            longest = self.reward_max_length if key.startswith("reward") else self.model.max_length
            if tokens < longest:
                what = "a pair of sequences" if key.startswith("reward") else "one sequence"
                limit = "reward.max_length" if longest == self.reward.max_length else "model.max_length"
                raise ValueError(f"{key} cannot hold {what} of {limit} = {longest} tokens")
        return self

    @model_validator(mode="after")
    def _sources_present(self) -> "RunConfig":
        if self.data.task is not None:
            return self
        needs = {"sft": "demonstrations", "reward": "preferences", "ppo": "prompts"}
        for stage in self.stages:
            if getattr(self.data, needs[stage]) is None:
                raise ValueError(f"stage {stage} needs data.{needs[stage]} (or the built-in data.task)")
        return self
