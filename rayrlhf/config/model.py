"""The four models: policy, reference, critic and reward model."""

from typing import Any

from pydantic import Field, model_validator

from rayrlhf.config.base import Node


class ModelConfig(Node):
    """What the policy starts from; the reference, the critic and the reward model follow from it."""

    path: str | None = None
    """A Hugging Face directory or hub name of a causal language model."""
    init: dict[str, Any] | None = None
    """Instead of `path`: a transformers configuration (with model_type) for random weights; a tokenizer is trained too."""
    vocab_size: int = Field(default=1024, ge=64)
    """Size of the tokenizer trained for `init`."""
    max_length: int = Field(default=128, ge=2)
    """Longest prompt plus response, in tokens."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.init is None):
            raise ValueError(
                "give exactly one of model.path (a directory or hub name) and model.init (a config for random weights)"
            )
        if self.init is not None and "model_type" not in self.init:
            raise ValueError("model.init needs model_type, for example qwen2")
        if self.init is not None and "vocab_size" in self.init:
            raise ValueError("give model.vocab_size, not model.init.vocab_size: the tokenizer decides it")
        return self


class SamplingConfig(Node):
    """How responses are drawn for training and for evaluation alike."""

    temperature: float = Field(default=1.0, gt=0.0)
    """Applied identically by the engine, the learner and the reference."""
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = Field(default=48, ge=1)

    @model_validator(mode="after")
    def _full_distribution(self) -> "SamplingConfig":
        if self.top_p != 1.0:
            raise ValueError(
                f"sampling.top_p={self.top_p} would truncate the distribution that log-probs are taken from; "
                f"training needs top_p=1.0"
            )
        if self.top_k != 0:
            raise ValueError(
                f"sampling.top_k={self.top_k} would truncate the distribution that log-probs are taken from; "
                f"training needs top_k=0"
            )
        return self
