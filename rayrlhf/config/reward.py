"""How reward models are trained."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rayrlhf.config.base import Node
from rayrlhf.config.stages import SupervisedConfig


class LossConfig(Node):
    """Which loss, and its constants."""

    kind: Literal[
        "bradley_terry",
        "margin",
        "scaled",
        "robust",
        "hinge",
        "rao_kupper",
        "davidson",
        "plackett_luce",
        "regression",
        "binary",
    ] = "bradley_terry"
    """Pairs: all but the last three; pairs with ties by a model of them: rao_kupper, davidson; ratings: regression;
    good-or-bad labels: binary. Rankings of K responses are learned from all their pairs, or by plackett_luce."""
    smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the label given to the other order (bradley_terry, margin, scaled)."""
    flip_rate: float = Field(default=0.1, ge=0.0, lt=0.5)
    """robust: the share of labels believed to be flipped."""
    hinge_margin: float = Field(default=1.0, gt=0.0)
    tie_parameter: float = Field(default=2.0, gt=0.0)
    """rao_kupper: theta, above 1; davidson: nu."""
    origin: float = 0.0
    """binary: the score between bad and good."""
    learn_ties: bool = True
    """bradley_terry, margin: whether equal ranks pull their scores together, or say nothing."""
    center_coef: float = Field(default=0.0, ge=0.0)
    """Weight of mean((r_chosen + r_rejected)^2), which keeps scores centred."""
    l2_coef: float = Field(default=0.0, ge=0.0)
    """Weight of mean(r^2), which keeps scores small."""

    @model_validator(mode="after")
    def _theta(self) -> "LossConfig":
        if self.kind == "rao_kupper" and self.tie_parameter <= 1.0:
            raise ValueError(f"tie_parameter={self.tie_parameter:g} must be above 1 for rao_kupper")
        return self


class LoraConfig(Node):
    """Low-rank adapters on a frozen backbone, merged when the model is written."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0.0)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class RewardConfig(SupervisedConfig):
    """Reward-model training on preferences."""

    base: str | list[str] | None = None
    """Backbone to start from; default: the run's own sft/, else model.path. A list gives each member of an ensemble its own,
    of any architecture and with any tokenizer: encoders beside decoders, other families and sizes."""
    keep_head: bool = False
    """`base` is the directory of a trained reward model: its heads and members are trained on, none is drawn anew."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus response, in the tokens of each member's tokenizer; default: model.max_length."""
    overlong: Literal["refuse", "drop", "cut"] = "refuse"
    """What becomes of a row with a longer response: a bad row, a row left out, or its responses are cut at the limit and
    read without an end token. Either is counted and told."""
    train_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the training preferences that is used: what the rest would add, a learning curve shows."""
    loss: LossConfig = LossConfig()
    length_balance: float = Field(default=0.0, ge=0.0, le=1.0)
    """How far pairs are reweighted so that among pairs of one length difference the longer response wins no more often
    than it loses: 0 not at all, 1 fully."""
    keep_best: bool = True
    """Keep the weights of the evaluation with the least held-out loss, not the last."""
    members: int = Field(default=1, ge=1)
    """Reward models of the ensemble: each with its own head, order and bootstrap sample of the preferences; default: as many
    as `base` lists, else 1."""
    heads: int = Field(default=1, ge=1)
    """Heads on one backbone, each with its own bootstrap weights: a cheap ensemble."""
    bootstrap: bool = True
    """Members and heads see resampled preferences; false: they differ by seed and order alone."""
    lora: LoraConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_member_for_each_base(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("base"), list) and given.get("members") is None:
            return {**given, "members": max(1, len(given["base"]))}
        return given

    @model_validator(mode="after")
    def _as_many_bases_as_members(self) -> "RewardConfig":
        if isinstance(self.base, list) and len(self.base) != self.members:
            raise ValueError(
                f"reward.base lists {len(self.base)} backbones for reward.members={self.members}: each member has one"
            )
        return self

    @property
    def bases(self) -> list[str]:
        """The backbone of each member, where `base` says it."""
        return [] if self.base is None else [self.base] * self.members if isinstance(self.base, str) else self.base

    @model_validator(mode="after")
    def _one_kind_of_ensemble(self) -> "RewardConfig":
        if self.members > 1 and self.heads > 1:
            raise ValueError(
                f"reward.members={self.members} and reward.heads={self.heads} exclude each other: an ensemble is of "
                f"models or of heads"
            )
        return self

    @model_validator(mode="after")
    def _a_head_to_keep(self) -> "RewardConfig":
        if self.keep_head and not isinstance(self.base, str):
            raise ValueError(
                "reward.keep_head trains on with a trained reward model: give its directory as reward.base"
            )
        return self

    @model_validator(mode="after")
    def _balance_needs_pairs(self) -> "RewardConfig":
        if self.length_balance and self.loss.kind in ("plackett_luce", "regression", "binary"):
            raise ValueError(
                f"reward.length_balance weighs pairs, and reward.loss.kind={self.loss.kind} learns from none: set it to 0"
            )
        return self
