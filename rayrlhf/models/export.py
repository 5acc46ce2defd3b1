"""Plain Hugging Face directories, each appearing whole or not at all."""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayrlhf.errors import ModelError
from rayrlhf.models.attention import implementation
from rayrlhf.models.heads import HEADS_FILE, scalar_head
from rayrlhf.models.load import as_reward_model
from rayrlhf.models.lora import has_adapters, merged


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
    heads: torch.Tensor | None = None,
) -> None:
    """Write model and tokenizer to `directory`, replacing what is there in one rename.

    `state_dict` stands in for the model's own where its parameters are sharded; `heads` [k, H] are kept beside it. The
    result loads in stock transformers and vLLM.
    """
    final = Path(directory).absolute()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=None if state_dict is None else _without_ties(model, state_dict))
    _keep_attention(model, partial / "config.json")
    tokenizer.save_pretrained(partial)
    if heads is not None:
        (partial / HEADS_FILE).parent.mkdir()
        save_file({"heads": heads.contiguous()}, partial / HEADS_FILE)
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


def export_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    state_dict: dict[str, torch.Tensor],
) -> None:
    """A reward model as `export_model` writes it: adapters merged, and of several heads the plain model is their mean.

    The mean of linear heads is a linear head, so that stock tools read the ensemble's mean score.
    """
    if has_adapters(model):
        state_dict = merged(model, state_dict)
        model = type(model)(model.config)
        model.load_state_dict(state_dict)
    head = scalar_head(model)
    if head.out_features == 1:
        export_model(model, tokenizer, directory, state_dict=state_dict)
        return
    name = next(name for name, module in model.named_modules() if module is head)
    heads = state_dict[f"{name}.weight"]
    mean = dict(state_dict) | {f"{name}.weight": heads.mean(0, keepdim=True)}
    if head.bias is not None:
        raise ModelError(f"reward.heads needs a head without bias, which {type(model).__name__} has not.")
    trained = model.config
    model.config = copy.deepcopy(trained)
    as_reward_model(model.config)
    try:
        export_model(model, tokenizer, directory, state_dict=mean, heads=heads)
    finally:
        model.config = trained


def _keep_attention(model: PreTrainedModel, config: Path) -> None:
    """Have stock transformers load the attention this model was trained with: its own choice would drop a feature."""
    chosen = implementation(model.config)
    if chosen is not None:
        written = json.loads(config.read_text()) | {"attn_implementation": chosen}
        config.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


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
