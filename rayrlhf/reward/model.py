"""A reward model of one process: plain, with several heads on one backbone, or an ensemble of whole models."""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayrlhf.algorithms.ensemble import Combination
from rayrlhf.config.data import Reading
from rayrlhf.data.batching import collate, plan_by_unit
from rayrlhf.data.exchange import encode_judged, judged_prompt_length
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import PromptText
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.checks import learnt_positions
from rayrlhf.models.device import resolve_device, resolve_dtype
from rayrlhf.models.forward import sequence_scores
from rayrlhf.models.heads import HEADS_FILE, scalar_head
from rayrlhf.models.load import load_trained_heads
from rayrlhf.models.members import model_directories
from rayrlhf.reward.stats import STATS_FILE, is_ensemble, load_stats, reading_of
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing

Reads = tuple[np.ndarray, ...]
"""The tokens of one text, as each reader of a reward model reads it."""


class Reader:
    """A tokenizer of a reward model, and how it reads a prompt and a response."""

    def __init__(self, directory: str, reading: Reading) -> None:
        self.directory = directory
        self.reading = reading
        self.tokenizer = load_tokenizer(directory)
        self.embeddings = sys.maxsize
        """Ids below this one have an embedding in every model that it reads for."""
        self.positions: int | None = None
        """Tokens that every such model has a learnt position for; None where none limits them."""

    def read_for(self, model: PreTrainedModel) -> None:
        """Keep to the limits of this model too."""
        self.embeddings = min(self.embeddings, model.get_input_embeddings().weight.shape[0])
        lengths = [length for length in (self.positions, learnt_positions(model)) if length is not None]
        self.positions = min(lengths, default=None)

    def encode(self, prompt: PromptText, response: str, *, finished: bool = True) -> np.ndarray:
        """Ids of a prompt and a response; one that was cut has no end."""
        return encode_judged(self.tokenizer, prompt, [response], reading=self.reading, finished=finished)[0]

    def prompt_length(self, prompt: PromptText) -> int:
        """Tokens before a response to the prompt."""
        return judged_prompt_length(self.tokenizer, prompt, reading=self.reading)

    def reads_as(self, other: "Reader") -> bool:
        """Whether both give every text the same ids."""
        return _signature(self.tokenizer) == _signature(other.tokenizer)


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One model of an ensemble."""

    directory: str
    reader: Reader
    model: PreTrainedModel

    @property
    def columns(self) -> int:
        return scalar_head(self.model).out_features


class RewardModel:
    """Raw scores of texts, one column a member. The members may read by tokenizers of their own."""

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
        self._device = resolve_device("cuda" if device == "cuda" else "cpu")
        self._dtype = resolve_dtype(dtype, self._device)
        self._micro_batch_tokens = micro_batch_tokens
        self.readers: list[Reader] = []
        """Those that differ, the plain model's first."""
        self._members: list[_Member] = []
        for path in model_directories(directory):
            own = Reader(path, self.reading)
            reader = next((known for known in self.readers if known.reads_as(own)), own)
            self.readers += [] if reader in self.readers else [reader]
            model = self._load(path)
            reader.read_for(model)
            self._members.append(_Member(directory=path, reader=reader, model=model))

    @property
    def models(self) -> int:
        """Whole models of the ensemble."""
        return len(self._members)

    @property
    def members(self) -> int:
        """Columns of `score`: whole models or heads."""
        return sum(member.columns for member in self._members)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The plain model's."""
        return self.readers[0].tokenizer

    def alone(self, number: int) -> "RewardModel":
        """One of the whole models as a reward model of its own."""
        member = self._members[number]
        own = copy.copy(self)
        own.directory, own.readers, own._members = member.directory, [member.reader], [member]
        return own

    def encode(self, prompt: PromptText, response: str, *, finished: bool = True) -> Reads:
        """What each reader reads; UnusableRowError, with the name of the model among several, where one cannot."""
        read = []
        for reader in self.readers:
            try:
                read.append(reader.encode(prompt, response, finished=finished))
            except UnusableRowError as reason:
                if len(self.readers) == 1:
                    raise
                raise UnusableRowError(f"{reader.directory} cannot read it: {reason}") from reason
        return tuple(read)

    def prompt_length(self, prompt: PromptText) -> int:
        """Tokens that the plain model reads before a response: lengths are counted by its tokenizer for all members."""
        return self.readers[0].prompt_length(prompt)

    def score(self, texts: Sequence[Reads], *, units: Sequence[int] | None = None) -> Float[np.ndarray, "n members"]:
        """Raw scores in fp32, in the order given; micro-batches by token budget, sorted by length, each of one unit."""
        units = [0] * len(texts) if units is None else units
        columns = []
        for member in self._members:
            place = self.readers.index(member.reader)
            columns.append(self._score(member, [read[place] for read in texts], units))
        return np.concatenate(columns, axis=1)

    def score_plain(self, sequences: Sequence[np.ndarray]) -> Float[np.ndarray, " n"]:
        """What stock tools that know nothing of members read from the directory: its own model, or its heads' mean."""
        return self.alone(0).score([(sequence,) for sequence in sequences]).mean(1)

    @torch.inference_mode()
    def _score(self, member: _Member, sequences: Sequence[np.ndarray], units: Sequence[int]) -> np.ndarray:
        scores = np.empty((len(sequences), member.columns), dtype=np.float32)
        lengths = [len(sequence) for sequence in sequences]
        # A text may be longer here than for the policy, whose tokens the budget was checked against: it goes alone.
        budget = max(self._micro_batch_tokens, *lengths, 0)
        for indices in plan_by_unit(lengths, units, max_tokens=budget):
            batch = collate(sequences, [1] * len(sequences), indices).to(self._device)
            scores[indices] = sequence_scores(member.model, batch).view(len(indices), -1).cpu().numpy()
        return scores

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
        needs_stats = self._ensemble or standardize or length_correction > 0.0 or is_ensemble(model.directory)
        self._stats = load_stats(model.directory) if needs_stats else None
        if self._stats is not None and len(self._stats.members) != model.members:
            raise ModelError(
                f"The reward model {model.directory} has {model.members} members and its {STATS_FILE} tells of "
                f"{len(self._stats.members)}: copy its directory as a whole."
            )
        self._reads_policy_tokens = [
            own.tokenizer.get_vocab() == policy_tokenizer.get_vocab()
            and own.tokenizer.chat_template == policy_tokenizer.chat_template
            for own in model.readers
        ]

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """The policy's own tokens where a member reads them alike, else its own tokens of the same texts.

        ModelError for a score that is not finite: such a model cannot be trained against.
        """
        read = [self._reads(request) for request in requests]
        kept = [(request, ids) for request, ids in zip(requests, read, strict=True) if not isinstance(ids, str)]
        scores = iter(self._scored([request for request, _ in kept], [ids for _, ids in kept]) if kept else [])
        return [missing(ids) if isinstance(ids, str) else next(scores) for ids in read]

    def _scored(self, requests: Sequence[ScoreRequest], texts: Sequence[Reads]) -> list[TermScore]:
        raw = self._model.score(texts, units=[request.unit for request in requests])
        bad = np.flatnonzero(~np.isfinite(raw).all(1))
        if len(bad):
            raise ModelError(
                f"The reward model {self._model.directory} gave sample {requests[bad[0]].name} the score {raw[bad[0]]}."
            )
        if self._length_correction:
            assert self._stats is not None
            lengths = [len(t[0]) - self._model.prompt_length(r.prompt) for r, t in zip(requests, texts, strict=True)]
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

    def _reads(self, request: ScoreRequest) -> Reads | str:
        """What each reader reads; or why one cannot."""
        read = []
        for reader, alike in zip(self._model.readers, self._reads_policy_tokens, strict=True):
            try:
                read.append(self._tokens(request, reader, alike=alike))
            except UnusableRowError as reason:
                return f"{reader.directory} cannot read sample {request.name}: {reason}"
        return tuple(read)

    def _tokens(self, request: ScoreRequest, reader: Reader, *, alike: bool) -> np.ndarray:
        # Of a conversation it reads what the template writes, as in training; a policy stops where its turn ends. A policy
        # with padded embeddings may sample ids that neither tokenizer knows.
        plain = isinstance(request.prompt, str) and reader.reading.plain_prompts == "text"
        if plain and alike and request.token_ids.max() < reader.embeddings:
            return request.token_ids
        ids = reader.encode(request.prompt, request.response, finished=request.finished)
        if reader.positions is not None and len(ids) > reader.positions:
            raise UnusableRowError(f"it has {len(ids)} tokens there and the model {reader.positions} positions")
        return ids


def members_and_heads(directory: str) -> tuple[int, int]:
    """How many whole models a reward model's directory holds, and how many heads the first of them has."""
    path = Path(directory, HEADS_FILE)
    heads = int(load_file(path)["heads"].shape[0]) if path.exists() else 1
    return len(model_directories(directory)), heads


def _signature(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What decides the ids of a text: two tokenizers may part words otherwise over one and the same vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"class": type(tokenizer).__name__}
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return tokenizer.get_vocab(), tokenizer.chat_template, rules, ends
