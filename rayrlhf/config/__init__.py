"""Strict configuration: one YAML file, `key.sub=value` overrides, every contradiction refused at construction."""

from rayrlhf.config.data import DataConfig, SourceConfig, TaskConfig
from rayrlhf.config.guard import GuardConfig
from rayrlhf.config.load import load_config, parse_config
from rayrlhf.config.model import ModelConfig, SamplingConfig
from rayrlhf.config.reward import LoraConfig, LossConfig, RewardConfig
from rayrlhf.config.rewards import FunctionReward, HttpReward, JudgeReward, MetricReward, ModelReward, RewardTerm
from rayrlhf.config.root import RunConfig, Stage
from rayrlhf.config.runtime import (
    AutoscaleConfig,
    CheckpointConfig,
    ClusterConfig,
    LearnerConfig,
    OnUpdate,
    ParityConfig,
    RoleConfig,
    RolloutConfig,
    ScaledRoleConfig,
    ScoringConfig,
    WandbConfig,
)
from rayrlhf.config.stages import KLConfig, OptimConfig, PPOConfig, SFTConfig, SupervisedConfig

__all__ = [
    "AutoscaleConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "DataConfig",
    "FunctionReward",
    "GuardConfig",
    "HttpReward",
    "JudgeReward",
    "KLConfig",
    "LearnerConfig",
    "LoraConfig",
    "LossConfig",
    "MetricReward",
    "ModelConfig",
    "ModelReward",
    "OnUpdate",
    "OptimConfig",
    "PPOConfig",
    "ParityConfig",
    "RewardConfig",
    "RewardTerm",
    "RoleConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "ScaledRoleConfig",
    "ScoringConfig",
    "SourceConfig",
    "Stage",
    "SupervisedConfig",
    "TaskConfig",
    "WandbConfig",
    "load_config",
    "parse_config",
]
