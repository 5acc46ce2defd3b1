"""vLLM's own weight-transfer interface over object-store buckets, so that another backend stays a configuration choice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS

from rayrlhf.errors import WeightSyncError
from rayrlhf.rollout.wording import reason_of
from rayrlhf.types import WeightManifest
from rayrlhf.weights.codec import unpack
from rayrlhf.weights.transaction import WeightUpdate


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the buckets come with each update."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """One whole version, by reference: the engine core lives in the worker's process."""

    manifest: WeightManifest
    buckets: list[np.ndarray] = field(repr=False)


class ObjectStoreTransfer(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads Hugging Face tensors from read-only buckets, layer by layer, and refuses an incomplete version."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """No rendezvous: the driver hands over object references."""

    def start_weight_update(self) -> None:
        """Put the model's layers into reloading state."""
        self._buffers = {name for name, _ in self.model.named_buffers()}
        self._tied = _tied_parameters(self.model)
        if self.device.type == "cpu":
            _forget_packed_experts(self.model)
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Load every tensor of the version; WeightSyncError when one is corrupted, missing or unknown to the model."""
        manifest = update_info.manifest
        tensors = WeightUpdate(manifest.version, expected=(slot.name for slot in manifest.slots))
        weights = tensors.watch(unpack(manifest, update_info.buckets))
        try:
            # Models without a class of vLLM's own make operators while they load, and these read the configuration.
            with set_current_vllm_config(self.vllm_config):
                loaded = self.model.load_weights(weights)
        except WeightSyncError:
            raise
        except (ValueError, AssertionError, RuntimeError, KeyError, AttributeError) as error:
            raise WeightSyncError(
                f"vLLM refused version {manifest.version} at {tensors.last}: {reason_of(error)}"
            ) from error
        tensors.commit()
        expected = [name for name, _ in self.model.named_parameters() if name not in self._tied]
        claimed = _first_names(self.model, expected if loaded is None else loaded)
        half_loaded = set(_half_loaded(self.model, claimed=claimed if loaded is not None else set()))
        parameters = WeightUpdate(manifest.version, expected=expected, noun="engine parameter")
        # A checkpoint may hold buffers too, such as the constants of an activation; vLLM takes them over as they come.
        parameters.consume(sorted(claimed - half_loaded - self._buffers))
        parameters.commit()

    def finish_weight_update(self) -> None:
        """Bring the layers back into service."""
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model, self.model_config)
            for layer in self._tied.values():
                # The layerwise reload updates a tied head's weight through the embedding it shares it with, but on CPU
                # the head multiplies with a packed copy made when it was processed last.
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def _first_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """The names under which `named_parameters` counts them: in a module that hangs in two places each has two names."""
    first: dict[int, str] = {}
    places = {path: first.setdefault(id(m), path) for path, m in model.named_modules(remove_duplicate=False)}
    split = (name.rpartition(".") for name in names)
    return {f"{places.get(path, path)}{dot}{leaf}" for path, dot, leaf in split}


def _tied_parameters(model: nn.Module) -> dict[str, Any]:
    """Parameters that are another module's under a second name, with the module that borrows them."""
    owners: dict[int, nn.Module] = {}
    tied: dict[str, Any] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if owners.setdefault(id(parameter), module) is not module:
                tied[f"{module_name}.{name}"] = module
    return tied


def _forget_packed_experts(model: nn.Module) -> None:
    """Have the kernels of experts built anew, which on CPU is when their weights are packed.

    A layer that has its kernel is given the new weights as they come, which the kernel would read as packed ones.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _half_loaded(model: nn.Module, *, claimed: set[str]) -> Iterator[str]:
    """Parameters fused of several tensors, such as query, key and value, of which not all came, and those that did not
    come at all though the model has `claimed` so: a model that copies past its own loaders writes into nothing here.

    An embedding is one tensor, but padded to a round vocabulary it never fills up; vLLM checks its shape on loading.
    """
    for module_name, module in model.named_modules():
        info = get_layerwise_info(module)
        if not info.can_load():
            continue
        own = {n: p for n, p in module.named_parameters(recurse=False) if n not in SKIP_LOAD_TENSORS}
        names = {f"{module_name}.{name}" for name in own}
        if info.load_numel == 0:
            yield from names & claimed
        elif not isinstance(module, VocabParallelEmbedding) and info.load_numel < sum(map(_loadable, own.values())):
            yield from names


def _loadable(parameter: torch.Tensor) -> int:
    return int(getattr(parameter, "weight_loader_numel", parameter.numel()))
