"""A node that dies with what was made on it, on a real cluster of two: what is lost is named, and its makers are asked again."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ObjectLostError

from rayrlhf.actors.calls import MOST_LOSSES, LostObjectError, repeated_when_lost, resolve
from rayrlhf.actors.placement import spawn
from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.actors.recorder import Recorder
from rayrlhf.actors.replica import Replica, State
from rayrlhf.config import RoleConfig, load_config
from rayrlhf.telemetry.events import Event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]


class Maker:
    """Makes arrays too large to travel inside an answer, and reads them."""

    def where(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def ready(self) -> None:
        pass

    def make(self, length: int) -> tuple[np.ndarray, str]:
        return np.ones(length), ray.get_runtime_context().get_node_id()

    def total(self, *arrays: np.ndarray) -> tuple[None, float]:
        return None, float(sum(array.sum() for array in arrays))


@ray.remote(num_cpus=0)
class Owner:
    """An object is lost with the process that put it."""

    def put(self) -> list[Any]:
        return [ray.put(np.ones(300_000))]


def lost_object() -> Any:
    owner = Owner.remote()
    (ref,) = ray.get(owner.put.remote())
    ray.kill(owner)
    while True:
        try:
            ray.get(ref, timeout=60)
        except ObjectLostError:
            return ref
        time.sleep(0.1)


async def live(replica: Replica) -> None:
    while replica.state is State.SERVING or replica.pending:
        await resolve(replica.handle.where.remote(), what="a pulse", timeout=30.0)
        await asyncio.sleep(0.2)


@asynccontextmanager
async def running(options: dict[str, Any], told: list[Event], size: int = 1) -> AsyncIterator[ReplicaPool]:
    pool = ReplicaPool(
        "making",
        RoleConfig(start_timeout=120.0, call_timeout=60.0),
        size=size,
        spawn=lambda _: spawn(Maker, {"num_cpus": 0, **options}),
        serve=live,
        tell=told.append,
    )
    run = asyncio.ensure_future(pool.run())
    await pool.ready()
    try:
        yield pool
        assert not run.done()
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    store = 100 * 2**20
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store, "resources": {"reading": 1}}
    )
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


async def test_a_lost_argument_is_named_and_its_maker_is_asked_again(cluster: Cluster) -> None:
    """Neither process died: the pool replaces nobody, and the caller learns which of the values is gone."""
    async with running({}, [], size=2) as pool:
        kept, _ = await pool.call("make", 300_000)
        lost = lost_object()
        with pytest.raises(
            LostObjectError, match=r"making worker \d .total. failed: a value it was given is lost"
        ) as caught:
            await pool.call("total", kept, lost)
        assert caught.value.object_id == lost.hex()
        assert pool.restarts == 0
        attempts = 0

        @repeated_when_lost
        async def whole() -> float:
            nonlocal attempts
            attempts += 1
            made, _ = await pool.call("make", 300_000)
            if attempts < 3:
                made = lost_object()
            _, total = await pool.call("total", made)
            return float(total)

        assert await whole() == 300_000
        assert attempts == 3


async def test_a_loss_without_end_is_an_error(cluster: Cluster) -> None:
    attempts = 0

    @repeated_when_lost
    async def never() -> None:
        nonlocal attempts
        attempts += 1
        raise LostObjectError("gone")

    with pytest.raises(LostObjectError, match="gone"):
        await never()
    assert attempts == MOST_LOSSES + 1


async def test_a_node_dies_with_its_values_and_its_workers(cluster: Cluster) -> None:
    """It is one loss, and replacements are not used up on the dying node before the cluster knows that it is dead."""
    store = 100 * 2**20
    dying = cluster.add_node(num_cpus=1, object_store_memory=store, resources={"making": 4})
    told: list[Event] = []
    async with (
        running({"resources": {"making": 1}}, told, size=4) as makers,
        running({"resources": {"reading": 1}}, []) as reader,
    ):
        lost, node = await makers.call("make", 300_000)
        assert node == dying.node_id
        cluster.add_node(num_cpus=1, object_store_memory=store, resources={"making": 4})
        cluster.wait_for_nodes()
        cluster.remove_node(dying, allow_graceful=False)
        made, elsewhere = await makers.call("make", 300_000)
        assert elsewhere != node
        async with asyncio.timeout(90):
            await makers.ready()
        assert makers.restarts >= 4  # more than the three losses that the budget bears
        assert sum(event.kind == "replacement" for event in told) >= 4
        with pytest.raises(LostObjectError) as caught:
            await reader.call("total", made, lost)
        assert caught.value.object_id == lost.hex()
        assert reader.restarts == 0


async def test_the_recorder_is_on_the_drivers_node_and_goes_on_after_its_death(
    cluster: Cluster, tmp_path: Path
) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["wandb.mode=disabled"])
    told: list[str] = []
    recorder = Recorder(tmp_path, config, wandb_run_id=None, last_steps={}, tell=told.append)
    for step in range(3):
        await recorder.log("sft", step, {"policy/nll": float(step)})
    await _kill(recorder)
    # Torn by the kill, and a row that was written but not acknowledged.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "step": 3, "time": 0.0, "policy/nll": 3.0}\n{"stage": "sft", "st')
    await asyncio.gather(*(recorder.log("sft", step, {"policy/nll": float(step)}) for step in (3, 4)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted((row["step"], row["policy/nll"]) for row in lines) == [(i, float(i)) for i in range(5)]
    assert len(told) == 1
    assert "Another one goes on with the same files" in told[0]
    await _kill(recorder)
    recorder.close({})
    assert "metrics.jsonl and samples.jsonl are whole" in told[1]


async def _kill(recorder: Recorder) -> None:
    pid = await resolve(recorder._actor.__ray_call__.remote(lambda _: os.getpid()), what="its pid", timeout=30)
    node = await resolve(
        recorder._actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), what="it", timeout=30
    )
    assert node == ray.get_runtime_context().get_node_id()
    os.kill(pid, signal.SIGKILL)
