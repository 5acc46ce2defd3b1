"""From a configuration to the learner of a stage: its models, and its data where it reads them itself."""

from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayrlhf.algorithms.preference_loss import LossSettings
from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RewardConfig, RunConfig
from rayrlhf.data.encoded import encoded_demonstrations, encoded_preferences
from rayrlhf.data.exchange import end_of_turn
from rayrlhf.data.length_balance import balance_lengths
from rayrlhf.data.rows import Rows
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import DataError
from rayrlhf.learner.objectives import NextToken, PreferenceObjective
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.learner.process_group import Ranks
from rayrlhf.learner.supervised import SupervisedLearner
from rayrlhf.models.classes import reads_forward
from rayrlhf.models.load import (
    load_critic,
    load_policy,
    load_trained_heads,
    make_critic,
    make_reward_model,
    read_config,
)
from rayrlhf.models.lora import add_adapters
from rayrlhf.models.members import model_directories
from rayrlhf.types import PreferenceExample


def build_sft(config: RunConfig, *, base_dir: str, ranks: Ranks) -> SupervisedLearner:
    """The learner of supervised fine-tuning."""
    tokenizer = load_tokenizer(base_dir)
    examples = encoded_demonstrations(config, base_dir)
    return SupervisedLearner(
        config,
        config.sft,
        NextToken(train_on_prompt=config.sft.train_on_prompt),
        model=_stopping(load_policy(base_dir), tokenizer),
        tokenizer=tokenizer,
        train=examples.train,
        heldout=examples.heldout,
        ranks=ranks,
        seed=config.seed,
    )


def build_reward(config: RunConfig, *, base_dir: str, ranks: Ranks, member: int = 0) -> SupervisedLearner:
    """The learner of one member of the reward-model ensemble: on the backbone in `base_dir`, or the trained model there."""
    tokenizer = load_tokenizer(base_dir)
    examples = encoded_preferences(config, base_dir)
    settings = LossSettings(**config.reward.loss.model_dump())
    seed = derive_seed(config.seed, "reward member", member) if member else config.seed
    train = share_of(examples.train, config.reward.train_share, seed=config.seed)
    train = balance_lengths(train, strength=config.reward.length_balance)
    if config.reward.keep_head:
        model = load_trained_heads(base_dir)
    else:
        model = make_reward_model(base_dir, tokenizer, seed=derive_seed(seed, "reward head"), heads=config.reward.heads)
    if config.reward.lora is not None:
        model = add_adapters(model, **config.reward.lora.model_dump(), seed=derive_seed(seed, "adapters"))
    return SupervisedLearner(
        config,
        config.reward,
        PreferenceObjective(settings),
        model=model,
        tokenizer=tokenizer,
        train=resampled(train, config.reward, seed=seed),
        heldout=examples.heldout,
        ranks=ranks,
        seed=seed,
    )


def build_ppo(config: RunConfig, *, policy_dir: str, reward_model_dir: str | None, ranks: Ranks) -> PPOLearner:
    """The learner, its policy loaded and its critic started from the reward model.

    Of an ensemble from the first member that reads the policy's tokens from left to right; without one the critic starts
    from the policy.
    """
    tokenizer = load_tokenizer(policy_dir)
    policy = _stopping(load_policy(policy_dir), tokenizer)
    critic = None
    if config.ppo.uses_critic:
        start = None if reward_model_dir is None else _critic_start(reward_model_dir, tokenizer)
        if start is not None:
            critic = load_critic(start)
        if critic is None or _vocabulary(critic) < _vocabulary(policy):
            critic = make_critic(policy_dir)
    return PPOLearner(config, policy=policy, critic=critic, tokenizer=tokenizer, ranks=ranks)


def _critic_start(reward_model_dir: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The model that a critic may start from: one that sees what comes later would value a token by it."""
    vocabulary = tokenizer.get_vocab()
    return next(
        (
            path
            for path in model_directories(reward_model_dir)
            if load_tokenizer(path).get_vocab() == vocabulary and reads_forward(read_config(path, role="reward model"))
        ),
        None,
    )


def _stopping(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The policy, to be exported so that whoever samples from it stops where its chat template ends a turn."""
    end, listed = end_of_turn(tokenizer), policy.generation_config.eos_token_id
    known = listed if isinstance(listed, list) else ([] if listed is None else [listed])
    if end is not None and end not in known:
        policy.generation_config.eos_token_id = [*known, end]
    return policy


def _vocabulary(model: Any) -> int:
    """Ids with an embedding: a critic needs one for every id that the policy may sample."""
    return int(model.get_input_embeddings().weight.shape[0])


def share_of(rows: Rows[PreferenceExample], share: float, *, seed: int) -> Rows[PreferenceExample]:
    """The first of the rows in a seeded order, so that a larger share holds every smaller one."""
    kept = np.random.default_rng(derive_seed(seed, "train share")).permutation(len(rows))[: round(share * len(rows))]
    if not len(kept):
        raise DataError(f"reward.train_share={share:g} of {len(rows)} training preferences is none: raise it.")
    return rows.pick(np.sort(kept))


def resampled(rows: Rows[PreferenceExample], settings: RewardConfig, *, seed: int) -> Rows[PreferenceExample]:
    """What one member sees of the rows: a bootstrap sample of them, or with several heads Poisson weights for each.

    Efron 1979; Oza and Russell 2001 for the weights, whose distribution is that of the counts in a bootstrap sample.
    """
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    if not settings.bootstrap or (settings.members == 1 and settings.heads == 1):
        return rows
    if settings.members > 1:
        return rows.pick(rng.integers(len(rows), size=len(rows)))
    weights = rng.poisson(1.0, size=(len(rows), settings.heads)).astype(float)
    return rows.changed(lambda row, i: replace(row, head_weights=tuple(weights[i].tolist())))
