"""One model over several processes: FSDP2, and the full tensors behind its shards.

Every function here is a collective: all ranks call it, in the same order.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def shard(model: nn.Module, *, world: int, device: torch.device) -> nn.Module:
    """Shard every decoder layer, then the rest; gradients are summed over ranks, not averaged.

    Sums, because a loss here is a share of one over the global token count.
    """
    if world == 1:
        return model
    mesh = init_device_mesh(device.type, (world,))
    for module in [m for m in model.modules() if type(m).__name__ in _layer_classes(model)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # FSDP gathers parameters around `forward`; this is one more method it does so for.
    model.as_forward = lambda function, *args: function(model, *args)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "as_forward")
    return model


def as_forward(model: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """`function(model, *args)`, with the parameters outside the decoder layers gathered where the model is sharded."""
    if isinstance(model, FSDPModule):
        forward: Any = model.as_forward
        return forward(function, *args)
    return function(model, *args)


def full_tensors(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named parameters and buffers one by one, whole, on the CPU.

    Unsharded on a CPU these are the tensors themselves, which the next step changes.
    """
    _reshard(model)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name in names:
        yield name, whole(own[name].detach()).cpu()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor behind a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm before."""
    _reshard(model)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(whole(norm))


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer state by parameter name, whole, on the CPU; filled on rank 0 alone.

    The same for any number of ranks, so that a checkpoint can be loaded by another number of them. Unsharded on a CPU
    its tensors are the live ones: write them before the next step.
    """
    _reshard(model)
    # Asked before the first step, torch takes one to make the state, which would stay behind in the step count.
    stepped = bool(optimizer.state)
    return {
        "model": get_model_state_dict(model, options=_WHOLE),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_WHOLE) if stepped else None,
    }


def load_full_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, world: int) -> None:
    """Put back what `full_state` gave; with several ranks rank 0's `state` is spread to all."""
    _reshard(model)
    options = StateDictOptions(full_state_dict=True) if world == 1 else _BROADCAST
    set_model_state_dict(model, state["model"], options=options)
    if state["optimizer"] is None:
        optimizer.state.clear()
    else:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def full_model_state(model: nn.Module) -> dict[str, Tensor]:
    """Model state by parameter name, whole, on the CPU; filled on rank 0 alone."""
    return cast(dict[str, Tensor], get_model_state_dict(model, options=_WHOLE))


def _reshard(model: nn.Module) -> None:
    """Put the shards back in place: a pass without gradient leaves the model's own parameters gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _layer_classes(model: nn.Module) -> set[str]:
    names: set[str] = set(getattr(model, "_no_split_modules", None) or [])
    return names
