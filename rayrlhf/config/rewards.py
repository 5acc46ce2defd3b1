"""What a response is rewarded for: one term, or a weighted sum of standardised ones."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from rayrlhf.config.base import Node


class _Term(Node):
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = None
    """What samples and the `rewards` of a data row call it, no two alike; default: its target, its server, `model` and the
    last part of its path."""
    weight: float = 1.0
    """Of the standardised term in the sum."""


class _ScaledTerm(_Term):
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0.0)
    """The term enters the sum as (value - mean) / std."""


class ModelReward(_Term):
    """A reward model, or an ensemble; standardised by its own reward_stats.json where it is not the only term."""

    kind: Literal["model"] = "model"
    path: str | None = None
    """Directory; default: the run's own reward_model/."""
    ensemble: Literal["mean", "min", "mean_std", "mean_var", "soft_min"] = "mean"
    """How the standardised members of an ensemble become one score: their mean, the worst, the mean less `penalty` times
    their standard deviation or variance, or between mean and worst by `penalty`: -log(mean exp(-penalty x r)) / penalty."""
    penalty: float = Field(default=1.0, ge=0.0)
    length_correction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the part that a response's length explains of its score, within a prompt, that is taken out of the score;
    evaluation.json says what each share does to the accuracy."""

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or f"model {Path(self.path or 'reward_model').name}"


TextMetric = Literal["bleu", "chrf", "chrf++", "ter", "rouge1", "rouge2", "rougeL"]


class MetricReward(_ScaledTerm):
    """A comparison with the prompt's reference response."""

    kind: Literal["metric"]
    name: TextMetric | Literal["embedding"]
    """bleu, chrf and chrf++ (sacrebleu, sentence level, here from 0 to 1), ter (1 less the rate of edits, at least 0), rouge
    F (rouge-score), or the cosine of mean embeddings; its name in samples and data rows too."""
    encoder: str | None = None
    """embedding: directory or hub name of any encoder."""

    @model_validator(mode="after")
    def _encoder(self) -> "MetricReward":
        if (self.name == "embedding") != (self.encoder is not None):
            raise ValueError("encoder belongs to name=embedding and is required there")
        return self

    @property
    def called(self) -> str:
        """Its name."""
        return self.name


class FunctionReward(_ScaledTerm):
    """A Python function, also `async def`, of (prompt, response, reference) that returns a number, or None for a score it
    cannot give."""

    kind: Literal["function"]
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:function`, importable by the scoring workers."""
    per: Literal["response", "group"] = "response"
    """group: it is called once for all responses to a prompt, as (prompt, responses, reference), and returns a list of as
    many numbers or None. In evaluations a prompt has one response."""
    timeout_s: float | None = Field(default=None, gt=0.0)
    """Seconds one call may take; default: scoring.function_timeout_s."""
    concurrency: int = Field(default=64, ge=1)
    """Calls of an `async def` function that are awaited together."""

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or self.target


class _ServedTerm(_ScaledTerm):
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds of one try, from the connection to the last byte of the answer. A try that ran out of it is not repeated: the
    server may be at work on it still."""
    retries: int = Field(default=4, ge=0)
    """Of a connection that was not made and of status 429, 500, 502, 503 and 504, with growing pauses."""


class HttpReward(_ServedTerm):
    """A scorer behind HTTP."""

    kind: Literal["http"]
    urls: list[str] = Field(min_length=1)
    """Base URLs of like servers; requests go to each in turn."""
    api: Literal["openrlhf", "vllm"]
    """openrlhf: POST /get_reward with `query` and `prompts`; vllm: POST /classify with raw scores asked for."""
    model: str | None = None
    """vllm: the served model's name."""
    batch: int = Field(default=16, ge=1)
    """Responses of one request."""

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or f"{self.api} at {self.urls[0]}"


class JudgeReward(_ServedTerm):
    """A language model that compares the responses to a prompt two by two, each pair in both orders.

    The scores are log-odds, fitted to the comparisons by Bradley and Terry's model, with mean 0 over the responses to a
    prompt: the mean of a batch says nothing, the held-out score does. A response that is alone, as in evaluations, is
    compared with the prompt's reference, else with what the judge itself answers; its score is its log-odds against that.
    """

    kind: Literal["judge"]
    principles: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """What makes one response better than another, in words for the judge."""
    path: str | None = None
    """Directory or hub name of a causal language model, run by vLLM in each scoring worker; of one judge only. Without a
    chat template it reads plain text."""
    urls: list[str] = Field(default_factory=list)
    """Instead: base URLs, such as http://localhost:8000/v1, of like servers of /chat/completions; requests go to each in
    turn."""
    model: str | None = None
    """urls: the served model's name."""
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*$")
    """urls: the environment variable of the scoring workers that holds the servers' key."""
    comparisons: int | None = Field(default=None, ge=2, multiple_of=2)
    """Others of its group that a response is compared with, drawn by the run's seed; default: all. Two questions a pair."""
    verdict: Literal["logprobs", "text"] = "logprobs"
    """logprobs: the probability of the answer A against B, one token a question. text: the judge reasons and ends with
    [[A]], [[B]] or [[C]] for a tie, which suits reasoning models and servers that give no log-probs."""
    max_tokens: int = Field(default=1024, ge=1)
    """Of the judge's reasoning with verdict: text, and of its own answer to a prompt, at most."""
    max_length: int = Field(default=4096, ge=2)
    """path: longest question with its answer, in the judge's tokens; a longer comparison has no result."""
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    """path: its engine's key-value cache, on CPU and on CUDA."""

    @model_validator(mode="after")
    def _one_place(self) -> "JudgeReward":
        if (self.path is None) == (not self.urls):
            raise ValueError("a judge is either a model's path or the urls of servers: give one of the two")
        if bool(self.urls) != (self.model is not None):
            raise ValueError("model is the served model's name: it belongs to urls and is required there")
        if self.key_env is not None and not self.urls:
            raise ValueError("key_env holds the key of servers: it belongs to urls")
        return self

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or f"judge {Path(self.path or self.model or '').name}"


RewardTerm = Annotated[
    ModelReward | MetricReward | FunctionReward | HttpReward | JudgeReward, Field(discriminator="kind")
]
