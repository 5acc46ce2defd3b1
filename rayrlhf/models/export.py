"""Plain Hugging Face directories, each appearing whole or not at all."""

import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer to `directory`, replacing what is there in one rename.

    `state_dict` stands in for the model's own where its parameters are sharded. The result loads in stock
    transformers and vLLM.
    """
    final = Path(directory).absolute()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=None if state_dict is None else _without_ties(model, state_dict))
    tokenizer.save_pretrained(partial)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    if final.exists():
        replaced = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    _sync(final.parent)


def _without_ties(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor under its first name alone: gathered from shards, tied weights no longer share storage."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value for name, value in state_dict.items() if name in own}


def _sync(path: Path) -> None:
    """Have a file's or a folder's content on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
