"""From a configuration to the scorer of one process."""

from collections.abc import Callable, Mapping
from typing import Protocol, cast

from transformers import PreTrainedTokenizerBase

from rayrlhf.config import FunctionReward, HttpReward, JudgeReward, MetricReward, ModelReward, RunConfig
from rayrlhf.data.dataset import task_gold
from rayrlhf.data.prepared import open_prompts
from rayrlhf.data.schema import PromptRow
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.reward.chat_server import ChatServers
from rayrlhf.reward.comparator import ChatModel, Comparator
from rayrlhf.reward.function import FunctionTerm
from rayrlhf.reward.http import HttpTerm
from rayrlhf.reward.judge_term import JudgeTerm
from rayrlhf.reward.metrics import MetricTerm
from rayrlhf.reward.model import ModelTerm, RewardModel
from rayrlhf.reward.scorer import TrajectoryScorer, WeightedTerm
from rayrlhf.reward.terms import Term
from rayrlhf.types import SampleId


class EngineMaker(Protocol):
    """Where a judge with a path gets its engine, of which a process holds one: asked again, it gives the same."""

    def __call__(self, path: str, *, max_length: int, kv_cache_gib: float) -> ChatModel: ...


def build_scorer(
    config: RunConfig, *, reward_model_dir: str | None, reference_dir: str, device: str, engine: EngineMaker
) -> TrajectoryScorer:
    """Every term loaded; `reward_model_dir` stands where a model term names no directory of its own."""
    tokenizer = load_tokenizer(reference_dir)
    return TrajectoryScorer(
        build_terms(
            config, reward_model_dir=reward_model_dir, reference_dir=reference_dir, device=device, engine=engine
        ),
        tokenizer=tokenizer,
        reference_dir=reference_dir,
        prompt_of=_prompts(config),
        micro_batch_tokens=config.scoring.micro_batch_tokens,
        temperature=config.sampling.temperature,
        device=device,
        dtype=config.scoring.dtype,
        gold=task_gold(config),
        judge=_judge(config, tokenizer, device),
        # Without staleness a run is repeated bit for bit, whichever groups come to be scored together.
        by_group=config.ppo.max_staleness == 0,
    )


def build_terms(
    config: RunConfig,
    *,
    reward_model_dir: str | None,
    reference_dir: str,
    device: str,
    engine: EngineMaker,
    replaced: Mapping[str, str] | None = None,
) -> list[WeightedTerm]:
    """The terms of the reward; `replaced` has the directory that stands in place of a model term's own, by its name."""
    tokenizer = load_tokenizer(reference_dir)
    terms = (
        term.model_copy(update={"path": replaced[term.called], "name": term.called})
        if replaced and isinstance(term, ModelReward) and term.called in replaced
        else term
        for term in config.ppo.rewards
    )
    return [
        _model(term, config, tokenizer, reward_model_dir, device)
        if isinstance(term, ModelReward)
        else WeightedTerm(
            name=term.called,
            term=_scaled(term, config, device, engine),
            weight=term.weight,
            mean=term.mean,
            std=term.std,
        )
        for term in terms
    ]


def build_comparator(term: JudgeReward, engine: EngineMaker) -> Comparator:
    """A judge by itself, for whatever responses it is to compare."""
    if term.path is None:
        chat: ChatModel = ChatServers(term)
    else:
        chat = engine(term.path, max_length=term.max_length, kv_cache_gib=term.kv_cache_gib)
    return Comparator(chat, principles=term.principles, verdict=term.verdict, max_tokens=term.max_tokens)


def _model(
    term: ModelReward,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    reward_model_dir: str | None,
    device: str,
) -> WeightedTerm:
    model = RewardModel(
        cast(str, term.path or reward_model_dir),
        device=device,
        dtype=config.scoring.dtype,
        micro_batch_tokens=config.scoring.micro_batch_tokens,
    )
    built = ModelTerm(
        model,
        combination=term.ensemble,
        penalty=term.penalty,
        policy_tokenizer=tokenizer,
        standardize=len(config.ppo.rewards) > 1,
        length_correction=term.length_correction,
    )
    return WeightedTerm(name=term.called, term=built, weight=term.weight)


def _scaled(
    term: MetricReward | FunctionReward | HttpReward | JudgeReward, config: RunConfig, device: str, engine: EngineMaker
) -> Term:
    if isinstance(term, MetricReward):
        return MetricTerm(term.name, encoder=term.encoder, device=device)
    if isinstance(term, HttpReward):
        return HttpTerm(term)
    if isinstance(term, JudgeReward):
        comparator = build_comparator(term, engine)
        return JudgeTerm(comparator, name=term.called, comparisons=term.comparisons, seed=config.seed)
    return FunctionTerm(
        term.target,
        per=term.per,
        timeout=config.scoring.function_timeout_s if term.timeout_s is None else term.timeout_s,
        start_timeout=config.scoring.start_timeout,
        concurrency=term.concurrency,
    )


def _judge(config: RunConfig, tokenizer: PreTrainedTokenizerBase, device: str) -> Term | None:
    if config.ppo.guard.judge is None:
        return None
    judge = ModelReward(path=config.ppo.guard.judge)
    return _model(judge, config, tokenizer, None, device).term


def _prompts(config: RunConfig) -> Callable[[SampleId], PromptRow | None]:
    """The rows behind sample ids: their messages and references, which tokens no longer tell."""
    split = open_prompts(config)

    def prompt_of(sample_id: SampleId) -> PromptRow | None:
        rows = split.train if sample_id.stage == "ppo" else split.heldout
        return rows[sample_id.prompt_id] if 0 <= sample_id.prompt_id < len(rows) else None

    return prompt_of
