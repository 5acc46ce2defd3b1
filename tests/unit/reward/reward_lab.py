"""Tiny reward models and preferences, for the tests of this folder."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.data.schema import Preference, pair
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.reward.judge import score_preferences
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.package import save_stats

INIT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
WORDS = ["the", "inn", "has", "bread", "and", "ale", "but", "no", "room", "tonight", "sit", "by", "fire", "cloak"]


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([" ".join(WORDS)], vocab_size=300)


def preferences(count: int = 60, *, seed: int = 0) -> list[Preference]:
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " " + " ".join(rng.choice(WORDS, size=int(rng.integers(low, high))))

    return [
        pair(f"Guest {i % 20}:", text(3, 10), text(2, 8), subset="even" if i % 2 else "odd", origin=f"p:{i}")
        for i in range(count)
    ]


def save_reward_model(directory: Path, *, seed: int = 2, heads: int = 1) -> Path:
    base = directory.with_name("base")
    if not base.exists():
        export_model(make_policy(INIT, tokenizer(), seed=1), tokenizer(), base)
    model = make_reward_model(str(base), tokenizer(), seed=seed, heads=heads)
    export_reward_model(model, tokenizer(), directory, state_dict=dict(model.state_dict()))
    return directory


def packaged(directory: Path, *, heads: int = 1, members: int = 1) -> Path:
    """A reward model with its sidecar."""
    save_reward_model(directory, heads=heads)
    for member in range(1, members):
        save_reward_model(directory / "members" / f"{member:02d}", seed=10 + member)
    model = load(directory)
    save_stats(model, score_preferences(model, preferences(), max_length=64), max_length=64)
    return directory


def load(directory: Path) -> RewardModel:
    return RewardModel(str(directory), device="cpu", dtype="auto", micro_batch_tokens=512)
