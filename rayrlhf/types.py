"""The records that walk through the system: Prompt -> Trajectory -> ScoredTrajectory -> MicroBatch.

Token ids are int32 arrays, log-probabilities float32 arrays; `[R]` is the number of response tokens.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

PolicyVersion = int
"""Number of PPO updates the weights have behind them; 0 is the supervised policy."""

FinishReason = Literal["eos", "length"]
"""How a response ended: by its own end-of-sequence token, or cut at the token limit."""


class SampleId(NamedTuple):
    """What makes a sample unique in a run: it is issued, scored and trained under this name, once.

    Example: `SampleId("ppo", 12, 803, 2)` is the third response to prompt 803, drawn at step 12 of the stream.
    """

    stage: str
    step: int
    prompt_id: int
    k: int

    @property
    def trained(self) -> bool:
        """Whether it is drawn to be trained on; others are drawn to judge the policy by."""
        return self.stage == "ppo"

    def __str__(self) -> str:
        return f"{self.stage}-{self.step}-{self.prompt_id}-{self.k}"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a data set, tokenized with the policy's tokenizer."""

    prompt_id: int
    text: str
    token_ids: Int32[np.ndarray, " prompt"]


@dataclass(frozen=True, kw_only=True)
class VersionSpan:
    """Response tokens `[start, end)` were drawn from weights `version`."""

    version: PolicyVersion
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The part of a response that another worker drew before it gave the sample away."""

    response_ids: Int32[np.ndarray, " drawn"]
    rollout_logprobs: Float32[np.ndarray, " drawn"]
    version_spans: tuple[VersionSpan, ...]


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """A leased sample: everything a rollout worker needs to draw it, the same on any worker."""

    sample_id: SampleId
    prompt_ids: Int32[np.ndarray, " prompt"]
    seed: int
    begun: Begun | None = None
    """Where to go on; None: from the prompt."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One response as the engine drew it."""

    sample_id: SampleId
    prompt_ids: Int32[np.ndarray, " prompt"]
    response_ids: Int32[np.ndarray, " response"]
    """[R] the sampled tokens, the end-of-sequence token included when `finish` is "eos"."""
    rollout_logprobs: Float32[np.ndarray, " response"]
    """[R] log-probabilities of the sampled tokens under the distribution that was sampled from, in nats."""
    finish: FinishReason
    version_spans: tuple[VersionSpan, ...]

    @property
    def min_version(self) -> PolicyVersion:
        return min(span.version for span in self.version_spans)


class GroupId(NamedTuple):
    """Which samples travel together: those of one prompt, at one place of the stream, or a few of an evaluation."""

    stage: str
    step: int
    position: int

    def __str__(self) -> str:
        return f"{self.stage}-{self.step}-{self.position}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples that are drawn by one worker, scored together and trained in one batch."""

    group_id: GroupId
    requests: tuple[RolloutRequest, ...]
    """What is left to draw."""
    drawn: tuple[Trajectory, ...] = ()
    """What another worker has drawn to the end already."""

    @property
    def sample_ids(self) -> tuple[SampleId, ...]:
        """All its samples, in order."""
        own = [request.sample_id for request in self.requests] + [t.sample_id for t in self.drawn]
        return tuple(sorted(own))


@dataclass(frozen=True)
class Unanswered:
    """A question to a language model that has no answer."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """How a judge fared with the comparisons of one response; each was asked in both orders."""

    asked: int
    read: int
    """Of them, those with a result in both orders; the figures below are of these."""
    bias: float
    """Sum of the probability that what stands first is better, mean of both orders, less a half."""
    flipped: int
    """Comparisons whose winner changes with the order."""

    def __add__(self, other: "Comparisons") -> "Comparisons":
        return Comparisons(
            asked=self.asked + other.asked,
            read=self.read + other.read,
            bias=self.bias + other.bias,
            flipped=self.flipped + other.flipped,
        )


@dataclass(frozen=True, kw_only=True)
class ScoredTrajectory:
    """A trajectory with what the scoring pool adds: reads of frozen models, no shaping yet."""

    trajectory: Trajectory
    score: float
    """The reward's terms as one: a reward model's raw value where it is the only one."""
    reward_version: int = 0
    """How many times the reward models were replaced before it was scored."""
    terms: dict[str, float] = field(default_factory=dict)
    """The own value of each term that scores its prompt."""
    spread: float | None = None
    """Standard deviation over the standardised members of an ensemble, the largest where several score it; None where
    none does."""
    comparisons: Comparisons | None = None
    """Of it by judges; None where no judge is among the rewards."""
    ref_logprobs: Float32[np.ndarray, " response"]
    """[R] the reference policy's log-probabilities of the response tokens, at the sampling temperature."""
    prompt_text: str
    """The prompt as the policy reads it, special tokens included."""
    response_text: str
    """What the response adds to its prompt, special tokens included but for those that end it."""
    reference: str | None = None
    """The prompt's known good answer, where the data has one."""
    judge: float | None = None
    """A held-out reward model's score, for the guard alone; of evaluations only."""
    gold: float | None
    """The task's known true reward, for reporting alone; None where the task has none."""

    @property
    def verdict(self) -> float:
        """The score as its only term gave it, before any weight: 0 or 1 from a verifier; of several terms, their sum."""
        return float(next(iter(self.terms.values())) if len(self.terms) == 1 else self.score)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A supervised sequence; tokens from `prompt_length` on are trained."""

    token_ids: Int32[np.ndarray, " time"]
    prompt_length: int


@dataclass(frozen=True, kw_only=True)
class PreferenceExample:
    """K full sequences (prompt and response) of one prompt, and what is known about them; one entry a response."""

    sequences: tuple[Int32[np.ndarray, " _"], ...]
    lengths: tuple[int, ...]
    """Tokens of each sequence before it was cut at reward.max_length."""
    prompt_length: int
    ranks: tuple[int, ...]
    """0 is the best, equal ranks are ties, -1 is not ranked."""
    ratings: tuple[float, ...]
    """NaN where unknown."""
    labels: tuple[float, ...]
    """1 for good, 0 for bad, NaN where unknown."""
    probability: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    pair_weights: Float[np.ndarray, "k k"] | None = None
    """Of the pair of a better i and a worse j in the row's loss; None: 1 each."""
    head_weights: tuple[float, ...] = ()
    """How often each head of a multi-head reward model sees the row; empty: once each."""

    @property
    def longest(self) -> int:
        return max(len(sequence) for sequence in self.sequences)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Right-padded sequences of one forward pass; masks come from lengths, never from token ids."""

    indices: tuple[int, ...]
    """Position of each row in the list the micro-batch was made from."""
    input_ids: Int[Tensor, "batch time"]
    lengths: Int[Tensor, " batch"]
    attention_mask: Bool[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    """True where a token is trained; the token at t is predicted from the position t - 1."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch with its tensors on `device`."""
        return MicroBatch(
            indices=self.indices,
            input_ids=self.input_ids.to(device),
            lengths=self.lengths.to(device),
            attention_mask=self.attention_mask.to(device),
            loss_mask=self.loss_mask.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class TensorSlot:
    """Where one tensor's bytes lie in the published buckets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bucket: int
    offset: int
    nbytes: int
    checksum: int


@dataclass(frozen=True, kw_only=True)
class WeightManifest:
    """The table of contents of one published policy version."""

    version: PolicyVersion
    slots: tuple[TensorSlot, ...]
    bucket_bytes: tuple[int, ...]


TokenFloats = Float[Tensor, "batch time"]
"""A float per token of a right-padded batch."""
TokenMask = Bool[Tensor, "batch time"]
"""A truth value per token of a right-padded batch."""
