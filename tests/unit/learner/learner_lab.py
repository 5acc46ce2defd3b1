"""Tiny models, hand-made experience and learners around them, for the tests of this folder."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from rayrlhf.algorithms.preference_loss import LossSettings
from rayrlhf.config import RunConfig, parse_config
from rayrlhf.data import token_codecs
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.learner.objectives import NextToken, PreferenceObjective
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.learner.process_group import Ranks
from rayrlhf.learner.supervised import SupervisedLearner
from rayrlhf.models.load import make_policy
from rayrlhf.types import Example, PreferenceExample, SampleId, ScoredTrajectory, Trajectory, VersionSpan

ALONE = Ranks(rank=0, world=1)
INIT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["an inn by the road"], vocab_size=260)


def policy_model(seed: int = 0, **init: Any) -> PreTrainedModel:
    return make_policy(INIT | init, tokenizer(), seed=seed)


def critic_model(seed: int = 1) -> PreTrainedModel:
    settings = {name: value for name, value in INIT.items() if name != "model_type"}
    config = AutoConfig.for_model("qwen2", **settings, vocab_size=len(tokenizer()), num_labels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForTokenClassification.from_config(config, dtype=torch.float32).eval()
    return model


def run_config(ppo: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """A configuration of tiny stages; `ppo` and the other sections override it."""
    tree: dict[str, Any] = {
        "device": "cpu",
        "model": {"init": INIT, "vocab_size": 260, "max_length": 32},
        "data": {"task": {"name": "innkeeper"}, "max_prompt_tokens": 8},
        "sampling": {"max_new_tokens": 8},
        "sft": {"prompts_per_step": 8, "micro_batch_tokens": 64, "optim": {"lr": 1.0e-3}},
        "reward": {"prompts_per_step": 8, "micro_batch_tokens": 64, "optim": {"lr": 1.0e-3}},
    }
    base_ppo: dict[str, Any] = {
        "updates": 20,
        "prompts_per_step": 8,
        "samples_per_prompt": 2,
        "micro_batch_tokens": 128,
        "optim": {"lr": 1.0e-3, "schedule": "constant"},
        "critic_optim": {"lr": 1.0e-3, "schedule": "constant"},
    }
    return parse_config(tree | sections | {"ppo": base_ppo | (ppo or {})})


def ppo_learner(
    ppo: dict[str, Any] | None = None, *, ranks: Ranks = ALONE, policy: Any = None, **sections: Any
) -> PPOLearner:
    config = run_config(ppo, **sections)
    return PPOLearner(
        config,
        policy=policy_model() if policy is None else policy,
        critic=critic_model() if config.ppo.uses_critic else None,
        tokenizer=tokenizer(),
        ranks=ranks,
    )


def supervised_learner(stage: str, config: RunConfig, *, rows: int = 21, ranks: Ranks = ALONE) -> SupervisedLearner:
    settings = config.sft if stage == "sft" else config.reward
    objective: Any = (
        NextToken(train_on_prompt=config.sft.train_on_prompt)
        if stage == "sft"
        else PreferenceObjective(LossSettings(**config.reward.loss.model_dump()))
    )
    make = examples if stage == "sft" else pairs
    codec: Any = token_codecs.examples if stage == "sft" else token_codecs.preference_examples
    return SupervisedLearner(
        config,
        settings,
        objective,
        model=policy_model() if stage == "sft" else reward_model(),
        tokenizer=tokenizer(),
        train=codec.in_memory(make(rows, seed=1)),
        heldout=codec.in_memory(make(9, seed=2)),
        ranks=ranks,
        seed=config.seed,
    )


def reward_model(seed: int = 3) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    settings = {name: value for name, value in INIT.items() if name != "model_type"}
    config = AutoConfig.for_model("qwen2", **settings, vocab_size=len(tokenizer()), num_labels=1, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    return model


def examples(count: int, *, seed: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [Example(token_ids=ids(rng, int(rng.integers(4, 14))), prompt_length=3) for _ in range(count)]


def pairs(count: int, *, seed: int) -> list[PreferenceExample]:
    """The chosen response ends in a low id, the rejected one in a high one: something a reward model can learn."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        chosen, rejected = ids(rng, int(rng.integers(4, 14))), ids(rng, int(rng.integers(4, 14)))
        chosen[-1], rejected[-1] = int(rng.integers(50, 54)), int(rng.integers(200, 204))
        made.append(preference((chosen, rejected), ranks=(0, 1)))
    return made


def preference(sequences: tuple[np.ndarray, ...], **known: Any) -> PreferenceExample:
    unknown = (float("nan"),) * len(sequences)
    facts: dict[str, Any] = {"ranks": (-1,) * len(sequences), "ratings": unknown, "labels": unknown}
    facts |= {"lengths": tuple(len(sequence) for sequence in sequences)}
    return PreferenceExample(sequences=sequences, prompt_length=1, **(facts | known))


def ids(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(2, len(tokenizer()), size=length).astype(np.int32)


def hand_made(
    count: int,
    *,
    seed: int,
    version: int = 0,
    step: int | None = None,
    truncated: Sequence[int] = (),
    per_prompt: int = 2,
) -> list[ScoredTrajectory]:
    """Random responses of different lengths; log-probs near those of a random model."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        response = ids(rng, int(rng.integers(2, 9)))
        made.append(
            scored(
                SampleId("ppo", version if step is None else step, i // per_prompt, i % per_prompt),
                prompt=ids(rng, int(rng.integers(1, 6))),
                response=response,
                rollout_logprobs=rng.normal(-5.5, 0.3, size=len(response)),
                ref_logprobs=rng.normal(-5.5, 0.3, size=len(response)),
                score=float(rng.normal(1.0, 2.0)),
                finish="length" if i in truncated else "eos",
                version=version,
            )
        )
    return made


def scored(
    sample_id: SampleId,
    *,
    prompt: np.ndarray,
    response: np.ndarray,
    rollout_logprobs: np.ndarray,
    ref_logprobs: np.ndarray,
    score: float,
    finish: Any = "eos",
    version: int = 0,
    gold: float | None = None,
    spread: float | None = None,
) -> ScoredTrajectory:
    return ScoredTrajectory(
        trajectory=Trajectory(
            sample_id=sample_id,
            prompt_ids=prompt,
            response_ids=response,
            rollout_logprobs=rollout_logprobs.astype(np.float32),
            finish=finish,
            version_spans=(VersionSpan(version=version, start=0, end=len(response)),),
        ),
        score=score,
        spread=spread,
        ref_logprobs=ref_logprobs.astype(np.float32),
        prompt_text=" ".join(map(str, prompt)),
        response_text=" ".join(map(str, response)),
        gold=gold,
    )


@torch.no_grad()
def sample(
    learner: PPOLearner,
    *,
    score: Callable[[np.ndarray], float],
    reference: Any,
    count: int = 32,
    length: int = 6,
    per_prompt: int = 4,
    seed: int = 0,
) -> list[ScoredTrajectory]:
    """Responses of fixed length drawn from the learner's policy, with exact log-probs."""
    generator = torch.Generator().manual_seed(seed * 1000 + learner.version)
    prompts = torch.randint(2, 100, (count // per_prompt, 2), generator=generator).repeat_interleave(per_prompt, dim=0)
    tokens = prompts
    model = learner._policy.model
    for _ in range(length):
        probabilities = model(tokens, use_cache=False).logits[:, -1].float().softmax(dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)

    def logprobs(of: Any) -> np.ndarray:
        rows = of(tokens, use_cache=False).logits[:, 1:-1].float().log_softmax(dim=-1)
        picked: np.ndarray = rows.gather(-1, tokens[:, 2:].unsqueeze(-1)).squeeze(-1).numpy()
        return picked

    own, ref = logprobs(model), logprobs(reference)
    return [
        scored(
            SampleId("ppo", learner.version, i // per_prompt, i % per_prompt),
            prompt=tokens[i, :2].numpy().astype(np.int32),
            response=tokens[i, 2:].numpy().astype(np.int32),
            rollout_logprobs=own[i],
            ref_logprobs=ref[i],
            score=score(tokens[i, 2:].numpy()),
            version=learner.version,
        )
        for i in range(count)
    ]


def parameters(model: Any) -> dict[str, torch.Tensor]:
    from rayrlhf.models.sharding import full_tensors

    return {name: value.clone() for name, value in full_tensors(model, [n for n, _ in model.named_parameters()])}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
