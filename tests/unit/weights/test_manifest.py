"""The bucket layout: aligned, layer by layer, every tensor once."""

import pytest
import torch

from rayrlhf.errors import WeightSyncError
from rayrlhf.weights.manifest import ALIGNMENT, layer_of, plan_buckets


def spec(
    *names: str, size: int = 10, dtype: torch.dtype = torch.float32
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    return [(name, dtype, (size,)) for name in names]


def test_offsets_are_aligned_and_places_do_not_overlap() -> None:
    tensors = [
        ("a.weight", torch.bfloat16, (3, 5)),
        ("a.bias", torch.float32, (1,)),
        ("b.scale", torch.float64, ()),
        ("b.empty", torch.float32, (0, 4)),
        ("c.flag", torch.uint8, (7,)),
    ]
    plan = plan_buckets(tensors, bucket_bytes=1000)
    # By hand: 30 bytes at 0, 4 at 64, 8 at 128, 0 at 192 (136 rounded up), 7 at 192.
    assert [(t.offset, t.nbytes) for t in plan.tensors] == [(0, 30), (64, 4), (128, 8), (192, 0), (192, 7)]
    assert plan.bucket_bytes == (199,)
    assert all(t.offset % ALIGNMENT == 0 for t in plan.tensors)


def test_a_bucket_is_closed_when_the_next_tensor_does_not_fit() -> None:
    plan = plan_buckets(spec("a.x", "a.y", "a.z", size=20), bucket_bytes=208)
    # 80 bytes at 0, 80 at 128 (ends at 208, just fits), the third opens a bucket.
    assert [(t.bucket, t.offset) for t in plan.tensors] == [(0, 0), (0, 128), (1, 0)]
    assert plan.bucket_bytes == (208, 80)
    assert plan.bucket_count == 2


def test_a_tensor_larger_than_a_bucket_gets_its_own() -> None:
    tensors = [*spec("a.x"), *spec("b.huge", size=1000), *spec("c.x")]
    plan = plan_buckets(tensors, bucket_bytes=100)
    assert plan.bucket_bytes == (40, 4000, 40)


def test_layers_lie_together_whatever_order_they_are_listed_in() -> None:
    names = [
        "m.embed.weight",
        "m.layers.0.q.weight",
        "m.layers.10.q.weight",
        "m.layers.0.k.weight",
        "m.layers.10.k.weight",
    ]
    plan = plan_buckets(spec(*names, "m.norm.weight"), bucket_bytes=10**6)
    assert [t.name for t in plan.tensors] == [
        "m.embed.weight",
        "m.layers.0.q.weight",
        "m.layers.0.k.weight",
        "m.layers.10.q.weight",
        "m.layers.10.k.weight",
        "m.norm.weight",
    ]


def test_the_layer_of_a_name_is_its_first_numbered_block_or_its_module() -> None:
    assert layer_of("model.layers.3.mlp.experts.7.up.weight") == "model.layers.3"
    assert layer_of("model.norm.weight") == "model.norm"


def test_the_plan_is_the_same_every_time() -> None:
    tensors = spec(*(f"layers.{i}.{part}" for i in range(5) for part in "abc"))
    assert plan_buckets(tensors, bucket_bytes=128) == plan_buckets(tensors, bucket_bytes=128)


def test_a_name_listed_twice_is_refused() -> None:
    with pytest.raises(WeightSyncError, match=r"lm_head\.weight is listed 2 times"):
        plan_buckets(spec("embed.weight", "lm_head.weight", "lm_head.weight"), bucket_bytes=100)


def test_a_bucket_of_no_bytes_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="holds nothing"):
        plan_buckets(spec("a.x"), bucket_bytes=0)


def test_no_tensors_make_no_buckets() -> None:
    assert plan_buckets([], bucket_bytes=100).bucket_count == 0
