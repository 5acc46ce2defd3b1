"""Rollout on one node, the learner on another: the same result as on one."""

import json
from pathlib import Path

import pytest
from conftest import QUICKSTART, rows, succeed
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_two_nodes_give_the_result_of_one(ppo_only: list[str], tmp_path: Path) -> None:
    common = [*ppo_only, f"output_dir={tmp_path}"]
    succeed("run", str(QUICKSTART), *common, "name=one")
    store = 200 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store, "resources": {"train": 1}}
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=store, resources={"generate": 1})
        out = succeed(
            "run",
            str(QUICKSTART),
            *common,
            "name=two",
            f"cluster.address={cluster.address}",
            "rollout.resources={generate: 1}",
            "learner.resources={train: 1}",
        )
        assert "two" in out
    finally:
        cluster.shutdown()
    alone, joined = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    # Alone, Ray's own processes are the run's too; joined, they are the cluster's, and the workers still count.
    assert 0.5 < joined["peak_memory_bytes"] / alone["peak_memory_bytes"] < 1.1
    one, two = (summary["stages"]["ppo"] for summary in (alone, joined))
    for key in ("samples_trained", "samples_lost", "samples_duplicated", "policy_versions"):
        assert one[key] == two[key]
    ours, theirs = (
        [(row["sample_id"], row["response"]) for row in rows(tmp_path / name / "samples.jsonl", stage="ppo")]
        for name in ("one", "two")
    )
    assert ours == theirs
    for name in ("score_after", "gold_after", "kl_to_reference"):
        assert two[name] == pytest.approx(one[name], abs=1e-5)
