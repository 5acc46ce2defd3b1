"""Where every tensor of a published version lies: a layout planned once, the same for every version."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rayrlhf.errors import WeightSyncError

ALIGNMENT = 64
"""Bytes; a multiple of every element size and a cache line."""


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """The place of one tensor in the buckets."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bucket: int
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """The layout of every version of one model."""

    tensors: tuple[PlannedTensor, ...]
    bucket_bytes: tuple[int, ...]

    @property
    def bucket_count(self) -> int:
        return len(self.bucket_bytes)


def plan_buckets(tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], *, bucket_bytes: int) -> BucketPlan:
    """Lay tensors out layer by layer in buckets of at most `bucket_bytes`; a larger tensor gets a bucket of its own.

    Layers keep the order of their first tensor, and a layer's tensors lie together, so that a receiver that works
    layer by layer holds one layer at a time. Tied weights are to be listed once, under one name.
    """
    if bucket_bytes < 1:
        raise WeightSyncError(f"A weight bucket of {bucket_bytes} bytes holds nothing; give at least 1 byte.")
    [(name, times)] = Counter(name for name, _, _ in tensors).most_common(1) or [("", 0)]
    if times > 1:
        raise WeightSyncError(f"Weight {name} is listed {times} times; tied weights are published under one name.")
    planned: list[PlannedTensor] = []
    sizes: list[int] = []
    for name, dtype, shape in _by_layer(tensors):
        nbytes = math.prod(shape) * dtype.itemsize
        offset = -(-sizes[-1] // ALIGNMENT) * ALIGNMENT if sizes else 0
        if not sizes or (sizes[-1] > 0 and offset + nbytes > bucket_bytes):
            sizes.append(0)
            offset = 0
        planned.append(
            PlannedTensor(
                name=name, dtype=dtype, shape=tuple(shape), bucket=len(sizes) - 1, offset=offset, nbytes=nbytes
            )
        )
        sizes[-1] = offset + nbytes
    return BucketPlan(tensors=tuple(planned), bucket_bytes=tuple(sizes))


def _by_layer(
    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    order: dict[str, int] = {}
    for name, _, _ in tensors:
        order.setdefault(layer_of(name), len(order))
    return sorted(tensors, key=lambda tensor: order[layer_of(tensor[0])])


def layer_of(name: str) -> str:
    """The numbered block a tensor belongs to, else its module: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1])
