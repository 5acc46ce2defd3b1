"""A reward model of one process: plain, with several heads on one backbone, or an ensemble of whole models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayrlhf.data.batching import collate, plan_micro_batches
from rayrlhf.data.schema import PromptText
from rayrlhf.data.tokenizer import encode_prompt, encode_response, load_tokenizer
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.export import HEADS_FILE
from rayrlhf.models.forward import sequence_scores
from rayrlhf.models.heads import scalar_head
from rayrlhf.models.load import load_reward_model
from rayrlhf.types import MicroBatch

MEMBERS = "members"
"""Below a reward model's directory: the other models of its ensemble."""


class RewardModel:
    """Raw scores of token sequences, one column a member."""

    def __init__(self, directory: str, *, device: str, dtype: str, micro_batch_tokens: int) -> None:
        self.directory = directory
        self.tokenizer = load_tokenizer(directory)
        self._device = resolve_device("cuda" if device == "cuda" else "cpu")
        self._dtype = resolve_dtype(dtype, self._device)
        self._micro_batch_tokens = micro_batch_tokens
        self._models = [self._load(path) for path in [directory, *_member_directories(directory)]]

    @property
    def members(self) -> int:
        """Columns of `score`."""
        return sum(scalar_head(model).out_features for model in self._models)

    def encode(self, prompt: PromptText, response: str) -> np.ndarray:
        """The tokens this model reads for a prompt and a finished response."""
        head = encode_prompt(self.tokenizer, prompt) if prompt else np.zeros(0, dtype=np.int32)
        return np.concatenate([head, encode_response(self.tokenizer, response)])

    def score(self, sequences: Sequence[np.ndarray]) -> Float[np.ndarray, "n members"]:
        """Raw scores in fp32, in the order given; micro-batches by token budget, sorted by length."""
        scores = np.empty((len(sequences), self.members), dtype=np.float32)
        for indices in plan_micro_batches([len(s) for s in sequences], max_tokens=self._micro_batch_tokens):
            batch = collate(sequences, [1] * len(sequences), indices).to(self._device)
            scores[indices] = self.score_batch(batch).cpu().numpy()
        return scores

    def plain(self, scores: Float[np.ndarray, "n members"]) -> Float[np.ndarray, " n"]:
        """What stock tools that know nothing of members read from the directory: its own model, or its heads' mean."""
        return scores.mean(1) if len(self._models) == 1 else scores[:, 0]

    @torch.inference_mode()
    def score_batch(self, batch: MicroBatch) -> Float[Tensor, "batch members"]:
        """Raw scores of one micro-batch."""
        columns = [sequence_scores(model, batch) for model in self._models]
        return torch.cat([column.view(len(batch.indices), -1) for column in columns], dim=1)

    def _load(self, directory: str) -> PreTrainedModel:
        model = load_reward_model(directory, dtype=self._dtype)
        heads = Path(directory) / HEADS_FILE
        if heads.exists():
            _use_heads(model, load_file(heads)["heads"])
        return model.to(self._device)


def is_ensemble(directory: str) -> bool:
    """Whether a reward model's scores come with a spread."""
    return bool(_member_directories(directory)) or (Path(directory) / HEADS_FILE).exists()


def _use_heads(model: Any, heads: Tensor) -> None:
    """Put the trained heads in the place of their mean."""
    mean = scalar_head(model)
    many = nn.Linear(mean.in_features, heads.shape[0], bias=False, dtype=mean.weight.dtype)
    with torch.no_grad():
        many.weight.copy_(heads)
    name = next(name for name, module in model.named_modules() if module is mean)
    setattr(model, name, many)


def _member_directories(directory: str) -> list[str]:
    return sorted(str(path) for path in Path(directory).joinpath(MEMBERS).glob("[0-9]*"))
