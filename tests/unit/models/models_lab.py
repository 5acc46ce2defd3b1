"""Tiny models of several architectures and random right-padded batches, for the tests of this folder."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayrlhf.data.batching import collate
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.types import MicroBatch

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": _LLAMA_LIKE | {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen2-tied": _LLAMA_LIKE | {"model_type": "qwen2", "tie_word_embeddings": True},
    # Dropout under names of their own, learnt positions, a critic whose head is called `classifier`.
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "initializer_range": 0.2,
    },
    # Experts, which are fused in memory and not on disk.
    "mixtral": _LLAMA_LIKE | {"model_type": "mixtral"},
    # Logits that are more than the output of the head.
    "gemma2": _LLAMA_LIKE | {"model_type": "gemma2", "head_dim": 32, "final_logit_softcapping": 2.0},
    "granite": _LLAMA_LIKE | {"model_type": "granite", "logits_scaling": 4.0},
    "cohere": _LLAMA_LIKE | {"model_type": "cohere", "logit_scale": 0.25},
}


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["an inn by the road"], vocab_size=260)


def policy_model(family: str = "qwen2", *, seed: int = 0, **init: Any) -> PreTrainedModel:
    return make_policy(FAMILIES[family] | init, tokenizer(), seed=seed)


def policy_dir(directory: Path, family: str = "qwen2", *, seed: int = 0, **init: Any) -> str:
    export_model(policy_model(family, seed=seed, **init), tokenizer(), directory)
    return str(directory)


def reward_dir(directory: Path, family: str = "qwen2") -> str:
    base = policy_dir(directory.with_name(f"{directory.name}-base"), family)
    export_model(make_reward_model(base, tokenizer(), seed=5), tokenizer(), directory)
    return str(directory)


def sequences(lengths: Sequence[int], *, seed: int = 0) -> list[np.ndarray]:
    """Random tokens, none of them special."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2, len(tokenizer()), size=length).astype(np.int32) for length in lengths]


def batch_of(
    rows: Sequence[np.ndarray], starts: Sequence[int] | None = None, *, pad_id: int = 0, extra_padding: int = 0
) -> MicroBatch:
    """The rows as one micro-batch, `extra_padding` columns wider than they need."""
    batch = collate(rows, [1] * len(rows) if starts is None else starts, range(len(rows)), pad_id=pad_id)
    pad = functools.partial(torch.nn.functional.pad, pad=(0, extra_padding))
    return MicroBatch(
        indices=batch.indices,
        input_ids=pad(batch.input_ids, value=pad_id),
        lengths=batch.lengths,
        attention_mask=pad(batch.attention_mask, value=False),
        loss_mask=pad(batch.loss_mask, value=False),
    )


@torch.no_grad()
def stock_output(model: Any, row: np.ndarray) -> np.ndarray:
    """What the model's own forward makes of one sequence without padding: [T, outputs], in float64."""
    logits = model(torch.from_numpy(row.astype(np.int64)).unsqueeze(0)).logits[0]
    output: np.ndarray = logits.double().numpy()
    return output


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
