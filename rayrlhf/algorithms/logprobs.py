"""Log-probabilities and entropies of tokens, in at least fp32."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 4096
"""Rows of the vocabulary matrix upcast at a time."""


def selected_logprobs(
    logits: Float[Tensor, "tokens vocab"], token_ids: Int[Tensor, " tokens"], *, temperature: float
) -> Float[Tensor, " tokens"]:
    """log softmax(logits / temperature) at `token_ids`, each row on its own."""
    parts = [
        _at_least_fp32(rows).div(temperature).log_softmax(dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        for rows, ids in zip(logits.split(_CHUNK), token_ids.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts)


def row_entropy(logits: Float[Tensor, "tokens vocab"], *, temperature: float) -> Float[Tensor, " tokens"]:
    """Entropy of softmax(logits / temperature) in nats, H = -sum p log p, each row on its own."""

    def entropy(rows: Tensor) -> Tensor:
        logprobs = _at_least_fp32(rows).div(temperature).log_softmax(dim=-1)
        return -(logprobs.exp() * logprobs).sum(dim=-1)

    return torch.cat([entropy(rows) for rows in logits.split(_CHUNK)])


def token_logprobs(
    logits: Float[Tensor, "batch time vocab"], input_ids: Int[Tensor, "batch time"], *, temperature: float
) -> Float[Tensor, "batch time"]:
    """log p(token t | tokens before t): the logits of position t - 1 at token t; 0 at position 0."""
    batch, time, vocab = logits.shape
    predicted = selected_logprobs(
        logits[:, :-1].reshape(-1, vocab), input_ids[:, 1:].reshape(-1), temperature=temperature
    )
    return torch.nn.functional.pad(predicted.view(batch, time - 1), (1, 0))


def token_entropy(logits: Float[Tensor, "batch time vocab"], *, temperature: float) -> Float[Tensor, "batch time"]:
    """Entropy of the distribution that token t was drawn from, aligned as `token_logprobs`; 0 at position 0."""
    batch, time, vocab = logits.shape
    entropy = row_entropy(logits[:, :-1].reshape(-1, vocab), temperature=temperature)
    return torch.nn.functional.pad(entropy.view(batch, time - 1), (1, 0))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
