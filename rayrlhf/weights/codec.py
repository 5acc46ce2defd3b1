"""Tensors to byte buckets and back: flat uint8 arrays, which every dtype fits, bfloat16 included."""

import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rayrlhf.errors import WeightSyncError
from rayrlhf.types import PolicyVersion, TensorSlot, WeightManifest
from rayrlhf.weights.manifest import BucketPlan, PlannedTensor

Bucket = UInt8[np.ndarray, "..."]


def pack_buckets(
    plan: BucketPlan, tensors: Iterable[tuple[str, Tensor]], *, version: PolicyVersion
) -> tuple[WeightManifest, list[Bucket]]:
    """Copy tensors, in any order and from any device, into fresh buckets; each is cast to the planned dtype.

    Raises WeightSyncError unless every planned tensor comes exactly once, in its planned shape.
    """
    buckets = [np.zeros(size, dtype=np.uint8) for size in plan.bucket_bytes]
    places = {place.name: place for place in plan.tensors}
    checksums: dict[str, int] = {}
    for name, tensor in tensors:
        if name not in places or name in checksums:
            fault = "twice" if name in checksums else "without a place in the bucket plan"
            raise WeightSyncError(f"Weight {name} was published {fault}.")
        place = places[name]
        if tuple(tensor.shape) != place.shape:
            raise WeightSyncError(
                f"Weight {name} has shape {list(tensor.shape)}, but the plan says {list(place.shape)}."
            )
        span = buckets[place.bucket][place.offset : place.offset + place.nbytes]
        _as_tensor(span, place.dtype, place.shape).copy_(tensor.detach())
        checksums[name] = zlib.crc32(span.data)
    absent = [name for name in places if name not in checksums]
    if absent:
        raise WeightSyncError(f"Version {version} lacks {len(absent)} planned weights, the first is {absent[0]}.")
    slots = tuple(_slot(place, checksums[place.name]) for place in plan.tensors)
    return WeightManifest(version=version, slots=slots, bucket_bytes=plan.bucket_bytes), buckets


def unpack(manifest: WeightManifest, buckets: Sequence[Bucket]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a version in manifest order, each checked against its checksum before it is handed out.

    They are views of the buckets, which other processes share and map read-only: a consumer copies from them and never
    writes to them.
    """
    sizes = tuple(bucket.nbytes for bucket in buckets)
    if sizes != manifest.bucket_bytes or any(bucket.dtype != np.uint8 for bucket in buckets):
        raise WeightSyncError(
            f"Version {manifest.version} came in buckets of {list(sizes)} bytes, "
            f"but its manifest says {list(manifest.bucket_bytes)} bytes."
        )
    for slot in manifest.slots:
        yield slot.name, _checked(manifest, slot, buckets)


def _checked(manifest: WeightManifest, slot: TensorSlot, buckets: Sequence[Bucket]) -> Tensor:
    dtype = getattr(torch, slot.dtype, None)
    if not isinstance(dtype, torch.dtype) or slot.nbytes != math.prod(slot.shape) * dtype.itemsize:
        raise WeightSyncError(
            f"The manifest of version {manifest.version} gives {slot.name} {slot.nbytes} bytes, "
            f"which is not a {slot.dtype} tensor of shape {list(slot.shape)}."
        )
    inside = 0 <= slot.bucket < len(buckets) and 0 <= slot.offset <= buckets[slot.bucket].nbytes - slot.nbytes
    if not inside or slot.offset % dtype.itemsize:
        raise WeightSyncError(
            f"The manifest of version {manifest.version} places {slot.name} at byte {slot.offset} of bucket {slot.bucket}, "
            "outside the buckets or off an element boundary."
        )
    span = buckets[slot.bucket][slot.offset : slot.offset + slot.nbytes]
    if zlib.crc32(span.data) != slot.checksum:
        raise WeightSyncError(
            f"Weight {slot.name} of version {manifest.version} arrived corrupted: its checksum differs."
        )
    return _as_tensor(span, dtype, slot.shape)


def _as_tensor(span: Bucket, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; copying every weight to silence it would double the memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(span)
    return flat.view(dtype).view(shape)


def _slot(place: PlannedTensor, checksum: int) -> TensorSlot:
    return TensorSlot(
        name=place.name,
        dtype=str(place.dtype).removeprefix("torch."),
        shape=place.shape,
        bucket=place.bucket,
        offset=place.offset,
        nbytes=place.nbytes,
        checksum=checksum,
    )
