"""A policy's weights under the names of its checkpoints, which are not always those in memory.

transformers fuses and renames weights when it loads them (the experts of a mixture, above all) and undoes it when it
saves; engines read checkpoints. What is published is what `save_pretrained` would write.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from rayrlhf.errors import ModelError
from rayrlhf.models.sharding import full_tensors

CheckpointTensor = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, dtype and shape."""


class CheckpointNames:
    """The translation of one model's weights into those of its checkpoint, a layer at a time.

    Made of the whole model, before it is sharded. Tied weights come once and buffers that are saved come too, as
    `save_pretrained` has it. ModelError where a model's layers cannot be translated one by one.
    """

    def __init__(self, model: PreTrainedModel, *, dtype: torch.dtype) -> None:
        state = _saved_state(model, dtype)
        self._layers: dict[str, list[str]] = {}
        for name in state:
            self._layers.setdefault(_layer_of(name), []).append(name)
        whole = _translated(model, state)
        parts = [_translated(model, {name: state[name] for name in names}) for names in self._layers.values()]
        by_layer = {name: tensor for part in parts for name, tensor in part.items()}
        if _described(by_layer) != _described(whole) or _elements(whole) != _elements(state):
            raise ModelError(
                f"The weights of {type(model).__name__} cannot be published: layer by layer transformers gives its "
                f"checkpoint other tensors than as a whole; train another architecture."
            )
        self.tensors: list[CheckpointTensor] = [(name, t.dtype, tuple(t.shape)) for name, t in by_layer.items()]
        """What every published version holds; floating-point weights in the `dtype` asked for, buffers in their own."""

    def published(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Name in the checkpoint and full value, on the CPU, one layer of `model` in memory at a time; a collective.

        Where nothing is fused, sharded or on a device, these are the weights themselves, which the next step changes.
        """
        for names in self._layers.values():
            yield from revert_weight_conversion(model, dict(full_tensors(model, names))).items()


def _saved_state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in memory that a checkpoint is made of, as tensors without storage, in their published dtypes."""
    kept = remove_tied_weights_from_state_dict(model.state_dict(), model)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    ignored = set(model._keys_to_ignore_on_save or ())
    return {
        name: torch.empty(tensor.shape, device="meta", dtype=_published_dtype(tensor, dtype, buffer=name in buffers))
        for name, tensor in kept.items()
        if name not in ignored
    }


def _published_dtype(tensor: Tensor, dtype: torch.dtype, *, buffer: bool) -> torch.dtype:
    # Engines keep such buffers, as the bias of a router, in full precision.
    return tensor.dtype if buffer or not tensor.is_floating_point() else dtype


def _translated(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return dict(revert_weight_conversion(model, dict(state)))
    except (RuntimeError, ValueError, KeyError, AttributeError, StopIteration) as error:
        raise ModelError(
            f"The weights of {type(model).__name__} cannot be published in the names of its checkpoint: "
            f"{(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')}."
        ) from error


def _described(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _elements(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _layer_of(name: str) -> str:
    """The numbered block a weight belongs to, else the module it is in."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: number + 1])
