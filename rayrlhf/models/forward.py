"""One forward pass of each model on a micro-batch; results in fp32."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from rayrlhf.algorithms.logprobs import row_entropy, selected_logprobs
from rayrlhf.models.heads import apply_head, reads_last_token, scalar_head
from rayrlhf.models.sharding import as_forward
from rayrlhf.types import MicroBatch


@dataclass(frozen=True, kw_only=True)
class PolicyOutputs:
    """Per trained token; 0 elsewhere."""

    logprobs: Float[Tensor, "batch time"]
    entropy: Float[Tensor, "batch time"] | None


def policy_forward(
    model: PreTrainedModel,
    batch: MicroBatch,
    *,
    temperature: float,
    with_entropy: bool,
    compute_dtype: torch.dtype = torch.float32,
) -> PolicyOutputs:
    """Log-probs (and entropies) of the tokens under `batch.loss_mask`; the vocabulary is spanned for these alone."""
    predicting = batch.loss_mask.roll(-1, dims=1)
    predicting[:, -1] = False
    with _autocast(batch, compute_dtype):
        logits = _logits_at(model, batch, predicting)
    token_ids = batch.input_ids[batch.loss_mask]
    logprobs = selected_logprobs(logits, token_ids, temperature=temperature)
    entropy = row_entropy(logits, temperature=temperature) if with_entropy else None
    return PolicyOutputs(
        logprobs=_spread(logprobs, batch.loss_mask),
        entropy=None if entropy is None else _spread(entropy, batch.loss_mask),
    )


def sequence_scores(
    model: PreTrainedModel, batch: MicroBatch, *, compute_dtype: torch.dtype = torch.float32
) -> Float[Tensor, " batch"] | Float[Tensor, "batch heads"]:
    """The reward model's score of each sequence, read at its last token by length, never by token id.

    Encoders score what they pool. While several heads are trained there is one score a head.
    """
    with _autocast(batch, compute_dtype):
        scores: Tensor = as_forward(model, _last_scores, batch)
    return scores


def token_values(
    model: PreTrainedModel, batch: MicroBatch, *, compute_dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch time"]:
    """The critic's value of the state before token t, read at position t - 1; 0 at position 0."""
    return torch.nn.functional.pad(_values_after(model, batch, compute_dtype)[:, :-1], (1, 0))


def values_with_end(
    model: PreTrainedModel, batch: MicroBatch, *, compute_dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, " batch"]]:
    """`token_values`, and the value of the state after each sequence's last token."""
    after = _values_after(model, batch, compute_dtype)
    rows = torch.arange(after.shape[0], device=after.device)
    return torch.nn.functional.pad(after[:, :-1], (1, 0)), after[rows, batch.lengths - 1]


def _values_after(model: PreTrainedModel, batch: MicroBatch, compute_dtype: torch.dtype) -> Tensor:
    with _autocast(batch, compute_dtype):
        values: Tensor = as_forward(model, _all_values, batch)
    return values


def _logits_at(model: PreTrainedModel, batch: MicroBatch, positions: Tensor) -> Tensor:
    """Logits [N, V] of the N positions that are True, as the model's own forward makes and rescales them."""
    # Selecting in front of the head spares the logits of prompts and padding, most of the memory of a forward pass.
    head = model.get_output_embeddings()
    selection = head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:]))
    try:
        logits: Tensor = model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    finally:
        selection.remove()
    return logits


def _last_scores(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    if not reads_last_token(model):
        pooled: Tensor = model(batch.input_ids, attention_mask=batch.attention_mask).logits.float()
        return pooled.squeeze(-1)
    hidden = _hidden(model, batch)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return apply_head(scalar_head(model), hidden[rows, batch.lengths - 1])


def _all_values(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    return apply_head(scalar_head(model), _hidden(model, batch))


def _hidden(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    backbone = getattr(model, model.base_model_prefix)
    hidden: Tensor = backbone(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
    return hidden


def _spread(values: Float[Tensor, " tokens"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def _autocast(batch: MicroBatch, compute_dtype: torch.dtype) -> Any:
    return torch.autocast(batch.input_ids.device.type, dtype=compute_dtype, enabled=compute_dtype != torch.float32)
