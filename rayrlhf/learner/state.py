"""A learner's state on disk: one file, written by rank 0, read by all."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayrlhf.errors import CheckpointError
from rayrlhf.learner.process_group import Ranks

_FILE = "learner.pt"


def fingerprint(*models: nn.Module | None) -> str:
    """Names and shapes of the parameters: what a checkpoint and the run that loads it must agree about."""
    shapes = [[(name, tuple(p.shape)) for name, p in m.named_parameters()] if m is not None else None for m in models]
    return hashlib.blake2b(repr(shapes).encode(), digest_size=16).hexdigest()


def save_state(directory: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Write tensors and plain values, and the random state; the other ranks have nothing to write."""
    if not ranks.first:
        return
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(state | {"random": _random_state()}, directory / _FILE)


def load_state(directory: Path, *, models: str) -> dict[str, Any]:
    """What `save_state` wrote, the random state put back; CheckpointError unless it is of models like `models`.

    `models` is the fingerprint of this run's. The file is mapped, so that ranks of one machine share its pages.
    """
    path = directory / _FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"The checkpoint {directory} holds no {_FILE}.") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"The checkpoint file {path} cannot be read: {first}.") from error
    if state["fingerprint"] != models:
        raise CheckpointError(
            f"The checkpoint {directory} was written for other models: the names or shapes of its parameters are not "
            f"those of this run; resume with the configuration it was written with, or start a new run."
        )
    random = state.pop("random")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return state


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state
