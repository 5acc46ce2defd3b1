"""A reward model of one process: plain, with several heads on one backbone, or an ensemble of whole models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayrlhf.algorithms.ensemble import Combination
from rayrlhf.config.data import Reading
from rayrlhf.data.batching import collate, plan_by_unit
from rayrlhf.data.exchange import encode_judged, judged_prompt_length
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import PromptText
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.forward import sequence_scores
from rayrlhf.models.heads import HEADS_FILE, scalar_head
from rayrlhf.models.load import load_trained_heads
from rayrlhf.reward.stats import load_stats, reading_of
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing
from rayrlhf.types import MicroBatch

MEMBERS = "members"
"""Below a reward model's directory: the other models of its ensemble."""


class RewardModel:
    """Raw scores of token sequences, one column a member."""

    def __init__(
        self,
        directory: str,
        *,
        device: str,
        dtype: str,
        micro_batch_tokens: int,
        reading: Reading | None = None,
    ) -> None:
        """`reading`: how people's text becomes tokens; by default as when the model was trained."""
        self.directory = directory
        self.reading = reading or reading_of(directory)
        self.tokenizer = load_tokenizer(directory)
        self._device = resolve_device("cuda" if device == "cuda" else "cpu")
        self._dtype = resolve_dtype(dtype, self._device)
        self._micro_batch_tokens = micro_batch_tokens
        self._models = [self._load(path) for path in [directory, *_member_directories(directory)]]

    @property
    def members(self) -> int:
        """Columns of `score`."""
        return sum(scalar_head(model).out_features for model in self._models)

    @property
    def vocabulary(self) -> int:
        """Ids below this one have an embedding in every model."""
        return min(model.get_input_embeddings().weight.shape[0] for model in self._models)

    def encode(self, prompt: PromptText, response: str, *, finished: bool = True) -> np.ndarray:
        """The tokens this model reads for a prompt and a response; one that was cut has no end."""
        return encode_judged(self.tokenizer, prompt, [response], reading=self.reading, finished=finished)[0]

    def prompt_length(self, prompt: PromptText) -> int:
        """Tokens that this model reads before a response to the prompt."""
        return judged_prompt_length(self.tokenizer, prompt, reading=self.reading)

    def score(
        self, sequences: Sequence[np.ndarray], *, units: Sequence[int] | None = None
    ) -> Float[np.ndarray, "n members"]:
        """Raw scores in fp32, in the order given; micro-batches by token budget, sorted by length, each of one unit."""
        scores = np.empty((len(sequences), self.members), dtype=np.float32)
        units = [0] * len(sequences) if units is None else units
        for indices in plan_by_unit([len(s) for s in sequences], units, max_tokens=self._micro_batch_tokens):
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
        return load_trained_heads(directory, dtype=self._dtype).to(self._device)


class ModelTerm:
    """A reward model as a term of the reward."""

    def __init__(
        self,
        model: RewardModel,
        *,
        combination: Combination,
        penalty: float,
        policy_tokenizer: PreTrainedTokenizerBase,
        standardize: bool,
        length_correction: float = 0.0,
    ) -> None:
        self._model = model
        self._combination = combination
        self._penalty = penalty
        self._ensemble = model.members > 1
        self._length_correction = length_correction
        self._standardize = standardize
        needs_stats = self._ensemble or standardize or length_correction > 0.0
        self._stats = load_stats(model.directory) if needs_stats else None
        own = model.tokenizer
        self._reads_policy_tokens = (
            own.get_vocab() == policy_tokenizer.get_vocab() and own.chat_template == policy_tokenizer.chat_template
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """The policy's own tokens where the model reads them alike, else its own tokens of the same texts.

        ModelError for a score that is not finite: such a model cannot be trained against.
        """
        read = [self._tokens(request) for request in requests]
        kept = [(request, ids) for request, ids in zip(requests, read, strict=True) if not isinstance(ids, str)]
        scores = iter(self._scored([request for request, _ in kept], [ids for _, ids in kept]) if kept else [])
        return [missing(ids) if isinstance(ids, str) else next(scores) for ids in read]

    def _scored(self, requests: Sequence[ScoreRequest], sequences: Sequence[np.ndarray]) -> list[TermScore]:
        raw = self._model.score(sequences, units=[request.unit for request in requests])
        bad = np.flatnonzero(~np.isfinite(raw).all(1))
        if len(bad):
            raise ModelError(
                f"The reward model {self._model.directory} gave sample {requests[bad[0]].name} the score {raw[bad[0]]}."
            )
        if self._length_correction:
            assert self._stats is not None
            lengths = [len(s) - self._model.prompt_length(r.prompt) for r, s in zip(requests, sequences, strict=True)]
            raw = self._stats.less_length(raw, np.array(lengths), self._length_correction)
        if not self._ensemble:
            values = raw[:, 0]
            if self._standardize:
                assert self._stats is not None
                values = (values - self._stats.scale.mean) / max(self._stats.scale.std, 1e-6)
            return [TermScore(value=value) for value in values.tolist()]
        assert self._stats is not None
        values, spreads = self._stats.combined(raw, self._combination, penalty=self._penalty)
        return [TermScore(value=v, spread=s) for v, s in zip(values.tolist(), spreads.tolist(), strict=True)]

    def _tokens(self, request: ScoreRequest) -> np.ndarray | str:
        """What the model reads; or why it cannot read it."""
        # Of a conversation it reads what the template writes, as in training; a policy stops where its turn ends. A policy
        # with padded embeddings may sample ids that neither tokenizer knows.
        plain = isinstance(request.prompt, str) and self._model.reading.plain_prompts == "text"
        if plain and self._reads_policy_tokens and request.token_ids.max() < self._model.vocabulary:
            return request.token_ids
        try:
            return self._model.encode(request.prompt, request.response, finished=request.finished)
        except UnusableRowError as reason:
            return f"{self._model.directory} cannot read sample {request.name}: {reason}"


def member_directory(directory: str, number: int) -> str:
    """Where a member of the ensemble in `directory` lies; the first is the directory's own model."""
    return str(Path(directory, MEMBERS, f"{number:02d}")) if number else directory


def members_and_heads(directory: str) -> tuple[int, int]:
    """How many whole models a reward model's directory holds, and how many heads the first of them has."""
    path = Path(directory, HEADS_FILE)
    heads = int(load_file(path)["heads"].shape[0]) if path.exists() else 1
    return 1 + len(_member_directories(directory)), heads


def _member_directories(directory: str) -> list[str]:
    return sorted(str(path) for path in Path(directory).joinpath(MEMBERS).glob("[0-9]*"))
