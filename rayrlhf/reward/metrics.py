"""Rewards by comparison with a reference response."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from rayrlhf.errors import DataError, ModelError
from rayrlhf.models.load import reason_of
from rayrlhf.reward.terms import ScoreRequest, TermScore
from rayrlhf.reward.text_metrics import Metric, text_metric


class MetricTerm:
    """One reference-based metric over responses."""

    def __init__(self, name: str, *, encoder: str | None = None, device: str = "cpu") -> None:
        self.name = name
        self._metric = _metric(name, encoder=encoder, device=device)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """DataError for a prompt without a reference: the data lacks what this reward needs."""
        references = []
        for request in requests:
            if request.reference is None:
                raise DataError(
                    f"Sample {request.name} has no reference and the reward {self.name} compares with one: give the "
                    f"prompts a field named by data.prompts.reference_key."
                )
            references.append(request.reference.strip())
        values = self._metric([request.response.strip() for request in requests], references)
        return [TermScore(value=value) for value in values]


def _metric(name: str, *, encoder: str | None, device: str) -> Metric:
    if name != "embedding":
        return text_metric(name)
    assert encoder is not None
    return _EmbeddingSimilarity(encoder, device=device)


class _EmbeddingSimilarity:
    """Cosine of the mean last hidden states (Reimers and Gurevych 2019), by any encoder."""

    def __init__(self, encoder: str, *, device: str) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(encoder)
            self._model: Any = AutoModel.from_pretrained(encoder).eval().to(device)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"The encoder {encoder} cannot be loaded: {reason_of(error)}.") from error
        self._limit = int(getattr(self._model.config, "max_position_embeddings", 512))
        self._encoder = encoder

    def __call__(self, responses: list[str], references: list[str]) -> list[float]:
        both = self._embed([*responses, *references])
        first, second = both[: len(responses)], both[len(responses) :]
        return [float(value) for value in (first * second).sum(1)]

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> np.ndarray:
        # An empty response still has its special tokens; where a tokenizer adds none, a space stands for it.
        encoded = self._tokenizer([text or " " for text in texts], padding=True, return_tensors="pt")
        if encoded.input_ids.shape[1] > self._limit:
            raise DataError(
                f"A text of {encoded.input_ids.shape[1]} tokens exceeds the {self._limit} of {self._encoder}."
            )
        hidden = self._model(**encoded.to(self._model.device)).last_hidden_state.float()
        mask = encoded.attention_mask.unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
