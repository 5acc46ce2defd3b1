"""Tensors to bytes and back: exact, checked, and never written to."""

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from rayrlhf.errors import WeightSyncError
from rayrlhf.types import WeightManifest
from rayrlhf.weights.codec import pack_buckets, unpack
from rayrlhf.weights.manifest import BucketPlan, plan_buckets


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed.weight": torch.randn(7, 5, generator=generator),
        "layers.0.weight": torch.randn(3, 4, generator=generator).bfloat16(),
        "layers.0.scale": torch.randn((), generator=generator).half(),
        "layers.1.weight": torch.tensor([float("inf"), -0.0, 1e-45]),
        "layers.1.steps": torch.arange(6).view(2, 3),
    }


def plan_of(named: dict[str, Tensor], bucket_bytes: int = 150) -> BucketPlan:
    return plan_buckets([(n, t.dtype, tuple(t.shape)) for n, t in named.items()], bucket_bytes=bucket_bytes)


def packed(version: int = 3) -> tuple[WeightManifest, list[np.ndarray]]:
    return pack_buckets(plan_of(tensors()), tensors().items(), version=version)


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_every_dtype_comes_back_bit_for_bit() -> None:
    manifest, buckets = packed()
    back = dict(unpack(manifest, buckets))
    assert len(buckets) > 1
    assert [slot.name for slot in manifest.slots] == list(back)
    for name, tensor in tensors().items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert as_bytes(back[name]) == as_bytes(tensor)


def test_checksums_are_crc32_of_the_bytes_and_the_version_is_carried() -> None:
    manifest, _ = packed(version=41)
    assert manifest.version == 41
    for slot in manifest.slots:
        assert slot.checksum == zlib.crc32(as_bytes(tensors()[slot.name]))


def test_the_plan_decides_the_dtype_that_travels() -> None:
    master = torch.tensor([1.0, 1.0 + 2**-9, 3.14159265])
    plan = plan_buckets([("w", torch.bfloat16, (3,))], bucket_bytes=64)
    manifest, buckets = pack_buckets(plan, [("w", master)], version=0)
    ((_, back),) = unpack(manifest, buckets)
    assert sum(manifest.bucket_bytes) == 6
    torch.testing.assert_close(back, master.bfloat16(), rtol=0, atol=0)


def test_tensors_may_come_in_any_order_strided_and_with_gradient() -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    named = {"a.weight": weight.t(), "b.weight": weight[::2]}
    manifest, buckets = pack_buckets(plan_of(named), reversed(named.items()), version=0)
    back = dict(unpack(manifest, buckets))
    for name, tensor in named.items():
        torch.testing.assert_close(back[name], tensor.detach(), rtol=0, atol=0)


def test_tied_embeddings_travel_once() -> None:
    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    named = dict(model.named_parameters())
    manifest, _ = pack_buckets(plan_of(named), named.items(), version=0)
    assert [slot.name for slot in manifest.slots if slot.shape == (32, 16)] == ["model.embed_tokens.weight"]


def test_each_publication_has_buckets_of_its_own() -> None:
    _, first = packed()
    _, second = packed()
    second[0][:] = 0
    assert first[0].any()


def frozen() -> tuple[WeightManifest, list[np.ndarray]]:
    manifest, buckets = packed()
    for bucket in buckets:
        bucket.flags.writeable = False
    return manifest, buckets


def test_shared_memory_is_neither_copied_nor_written_nor_warned_about() -> None:
    manifest, buckets = frozen()
    before = [zlib.crc32(bucket) for bucket in buckets]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = dict(unpack(manifest, buckets))
    for slot in manifest.slots:
        assert back[slot.name].data_ptr() == buckets[slot.bucket].ctypes.data + slot.offset
    sink = torch.empty(7, 5)
    sink.copy_(back["embed.weight"])
    assert [zlib.crc32(bucket) for bucket in buckets] == before


def test_every_flipped_byte_of_a_tensor_is_noticed() -> None:
    manifest, buckets = packed()
    for slot in manifest.slots:
        for position in range(slot.offset, slot.offset + slot.nbytes):
            buckets[slot.bucket][position] ^= 0x40
            with pytest.raises(WeightSyncError, match=f"Weight {slot.name} of version 3 arrived corrupted"):
                list(unpack(manifest, buckets))
            buckets[slot.bucket][position] ^= 0x40
    list(unpack(manifest, buckets))


def test_a_tensor_is_checked_before_it_is_handed_out() -> None:
    manifest, buckets = packed()
    last = manifest.slots[-1]
    buckets[last.bucket][last.offset] ^= 1
    stream: Iterator[tuple[str, Tensor]] = unpack(manifest, buckets)
    assert [next(stream)[0] for _ in manifest.slots[:-1]] == [slot.name for slot in manifest.slots[:-1]]
    with pytest.raises(WeightSyncError, match="corrupted"):
        next(stream)


def test_buckets_of_another_size_number_or_type_are_refused() -> None:
    manifest, buckets = packed()
    for wrong in (buckets[:-1], [buckets[0][:-1], *buckets[1:]], [b.astype(np.int16) for b in buckets]):
        with pytest.raises(WeightSyncError, match="its manifest says"):
            list(unpack(manifest, wrong))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nbytes": 139}, "is not a float32 tensor"),
        ({"dtype": "float33"}, "is not a float33 tensor"),
        ({"dtype": "nn"}, "is not a nn tensor"),
        ({"bucket": 9}, "outside the buckets"),
        ({"offset": 100}, "outside the buckets"),
        ({"offset": -4}, "outside the buckets"),
        ({"offset": 2}, "off an element boundary"),
    ],
)
def test_a_manifest_that_points_nowhere_is_refused(change: dict[str, int | str], words: str) -> None:
    manifest, buckets = packed()
    first, *rest = manifest.slots
    wrong = replace(manifest, slots=(replace(first, **change), *rest))  # type: ignore[arg-type]
    with pytest.raises(WeightSyncError, match=words):
        list(unpack(wrong, buckets))


def test_publishing_needs_exactly_the_planned_tensors() -> None:
    named = tensors()
    plan = plan_of(named)
    with pytest.raises(WeightSyncError, match=r"lacks 1 planned weights, the first is layers\.0\.scale"):
        pack_buckets(plan, [(n, t) for n, t in named.items() if n != "layers.0.scale"], version=0)
    with pytest.raises(WeightSyncError, match=r"extra\.weight was published without a place"):
        pack_buckets(plan, [*named.items(), ("extra.weight", torch.zeros(1))], version=0)
    with pytest.raises(WeightSyncError, match=r"embed\.weight was published twice"):
        pack_buckets(plan, [*named.items(), ("embed.weight", named["embed.weight"])], version=0)
    with pytest.raises(WeightSyncError, match=r"embed\.weight has shape \[5, 7\], but the plan says \[7, 5\]"):
        pack_buckets(plan, [("embed.weight", torch.zeros(5, 7))], version=0)
