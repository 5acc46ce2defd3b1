"""A store that is too small, on a real Ray."""

from collections.abc import Iterator

import numpy as np
import pytest
import ray

from rayrlhf.actors.store import StoreUse, StoreWatch, read_stores
from rayrlhf.telemetry.events import Event

MIB = 2**20


@pytest.fixture
def small_store() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, object_store_memory=100 * MIB, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


async def test_a_store_that_overflows_is_told_of_in_one_sentence_and_measured(small_store: None) -> None:
    told: list[Event] = []
    watch = StoreWatch(told.append)
    kept = [ray.put(np.zeros(10 * MIB, dtype=np.uint8)) for _ in range(3)]
    calm = await watch.look(1)
    assert calm["perf/object_store_bytes"] >= 30 * MIB
    assert calm["perf/spilled_bytes"] == 0.0
    assert not told
    kept += [ray.put(np.zeros(10 * MIB, dtype=np.uint8)) for _ in range(15)]
    full = await watch.look(2)
    assert full["perf/spilled_bytes"] >= (18 - 10) * 10 * MIB
    (event,) = told
    assert (event.kind, event.step) == ("spill", 2)
    assert f"{full['perf/spilled_bytes'] / MIB:,.0f} MiB were written to disk" in event.text
    assert "raise cluster.object_store_gib" in event.text
    assert all(ray.get(ref).nbytes == 10 * MIB for ref in kept)


async def test_it_is_told_again_when_it_has_doubled_and_counts_from_the_start_of_the_watch() -> None:
    told: list[Event] = []
    readings = iter([1000, 1000, 1010, 1015, 1019, 1020, 900])
    watch = StoreWatch(told.append, read=lambda: StoreUse(held=7, spilled=next(readings) * MIB))
    spilled = [(await watch.look(step))["perf/spilled_bytes"] / MIB for step in range(7)]
    assert spilled == [0.0, 0.0, 10.0, 15.0, 19.0, 20.0, 0.0]
    assert [event.step for event in told] == [2, 5]


async def test_where_ray_does_not_answer_nothing_is_claimed() -> None:
    assert read_stores() is None
    assert await StoreWatch(lambda _: None).look(1) == {}
