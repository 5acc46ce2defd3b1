"""Shares of a core for roles that name none, and sentences that name what can be lowered."""

from pathlib import Path

import pytest

from rayrlhf.actors.cluster import Node, demand, inspect, needs_of, shortages, with_shares
from rayrlhf.config import RunConfig, load_config
from rayrlhf.errors import ConfigError, ResourceError

ROOT = Path(__file__).parents[3]
UNNAMED = ["rollout.cpus=null", "scoring.cpus=null", "learner.cpus=null"]


def quickstart(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "quickstart.yaml", [*UNNAMED, *overrides])


def cpus(config: RunConfig) -> tuple[float | None, float | None, float | None]:
    return config.rollout.cpus, config.scoring.cpus, config.learner.cpus


@pytest.mark.parametrize(
    ("cores", "overrides", "expected"),
    [
        ([8], [], (1.0, 1.0, 1.0)),
        ([3], [], (1.0, 1.0, 1.0)),
        ([2], [], (0.5, 0.5, 0.5)),
        ([1], [], (0.33, 0.33, 0.33)),
        ([1, 1], [], (0.5, 0.5, 0.5)),
        ([2], ["rollout.workers=3"], (0.33, 0.33, 0.33)),
        ([2], ["rollout.cpus=1"], (1, 0.5, 0.5)),
        ([2], ["stages=[sft]"], (1.0, 1.0, 1.0)),
    ],
)
def test_two_cores_are_enough_and_more_give_whole_ones(
    cores: list[int], overrides: list[str], expected: tuple[float, float, float]
) -> None:
    nodes = [Node(name="n", resources={"CPU": float(count)}) for count in cores]
    resolved = with_shares(quickstart(*overrides), nodes, device="cpu")
    assert cpus(resolved) == expected
    assert shortages(needs_of(resolved, device="cpu"), nodes) == []


def test_what_is_named_is_kept_and_what_cannot_fit_is_said_with_its_keys(tmp_path: Path) -> None:
    nodes = [Node(name="n", resources={"CPU": 2.0})]
    config = with_shares(quickstart("scoring.cpus=2", "rollout.workers=3"), nodes, device="cpu")
    assert cpus(config) == (1.0, 2, 1.0)
    report = inspect(config, nodes, output_dir=tmp_path, object_store_need=0)
    with pytest.raises(ResourceError, match="does not fit") as refused:
        demand(report)
    told = str(refused.value)
    assert "lower scoring.cpus=2 or learner.cpus=1 or rollout.cpus=1 or rollout.workers=3, or add nodes" in told
    assert ".*" not in told


def test_the_key_is_of_the_resource_that_lacks(tmp_path: Path) -> None:
    nodes = [Node(name="n", resources={"CPU": 8.0, "memory": 2.0 * 2**30})]
    report = inspect(quickstart("learner.memory_gib=3"), nodes, output_dir=tmp_path, object_store_need=0)
    assert any("(lower learner.memory_gib=3, or add nodes)" in told for told in report.shortages)


def test_an_object_store_that_ray_would_refuse_is_known(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cluster\.object_store_gib: 0\.05 is below 0\.0733 GiB \(78,643,200 bytes\)"
    ):
        quickstart("cluster.object_store_gib=0.05")
    assert quickstart("cluster.object_store_gib=0.0733").cluster.object_store_gib == 0.0733
    nodes = [Node(name="n", resources={"CPU": 8.0})]
    report = inspect(quickstart("cluster.object_store_gib=1e6"), nodes, output_dir=tmp_path, object_store_need=0)
    assert any("cluster.object_store_gib=1e+06 exceeds the" in told for told in report.shortages)
