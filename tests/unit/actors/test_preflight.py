from pathlib import Path

import pytest

from rayrlhf.actors.cluster import GIB, Need, Node, demand, inspect, needs_of, shortages
from rayrlhf.config import load_config
from rayrlhf.errors import ResourceError

ROOT = Path(__file__).parents[3]


def node(**resources: float) -> Node:
    return Node(name="n", resources=resources)


def need(role: str, processes: int, **resources: float) -> Need:
    return Need(role=role, processes=processes, resources=resources)


def test_processes_fit_on_single_nodes_not_on_the_sum() -> None:
    two_halves = [node(CPU=1), node(CPU=1)]
    assert shortages([need("rollout", 2, CPU=1)], two_halves) == []
    (sentence,) = shortages([need("rollout", 1, CPU=2)], two_halves)
    assert "only 0 of 1 rollout processes fit" in sentence
    assert "2 CPU on 2 nodes" in sentence


def test_roles_share_the_same_nodes() -> None:
    assert shortages([need("learner", 1, CPU=1), need("rollout", 1, CPU=1)], [node(CPU=2)]) == []
    (sentence,) = shortages([need("learner", 1, CPU=1), need("rollout", 2, CPU=1)], [node(CPU=2)])
    assert "only 1 of 2 rollout" in sentence


def test_custom_resources_and_memory_are_counted() -> None:
    wanted = need("rollout", 1, CPU=1, memory=4 * GIB, trainer=1)
    assert shortages([wanted], [node(CPU=4, memory=8 * GIB, trainer=1)]) == []
    (sentence,) = shortages([wanted], [node(CPU=4, memory=8 * GIB)])
    assert "1 trainer" in sentence
    assert "0 trainer" in sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rollout.cpus=999"], "999 CPU"),
        (["device=cuda"], "device=cuda asks for a GPU"),
        (["learner.gpus=2"], "2 GPU"),
        (["scoring.cores=[9999]"], r"scoring.cores=\[9999\] names core 9999"),
    ],
)
def test_an_impossible_request_names_the_shortage(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    report = inspect(config, [node(CPU=2, GPU=0)], output_dir=tmp_path / "runs" / "x", object_store_need=0)
    with pytest.raises(ResourceError, match=sentence):
        demand(report)


def test_a_supervised_run_needs_the_learner_alone(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["stages=[sft]"])
    assert [n.role for n in needs_of(config, device="cpu")] == ["learner"]
    report = inspect(config, [node(CPU=2)], output_dir=tmp_path, object_store_need=10 * GIB)
    assert report.shortages == []
    assert any("object store" in warning for warning in report.warnings)
