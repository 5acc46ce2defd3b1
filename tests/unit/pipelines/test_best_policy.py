"""The policies the guard may still export: kept by step, put in place whole, forgotten when a better one is safe."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from rayrlhf.config import GuardConfig, parse_config
from rayrlhf.errors import ConfigError
from rayrlhf.pipelines.best_policy import BestPolicies
from rayrlhf.pipelines.folder import RunFolder

CONFIG = {"name": "run", "model": {"init": {"model_type": "qwen2"}}, "data": {"task": {}}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(parse_config({**CONFIG, "output_dir": str(tmp_path)}))


def write(kept: BestPolicies, step: int) -> None:
    for directory in map(Path, kept.directories(step)):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(f'"of step {step}"')


def test_a_step_is_put_in_place_whole_and_stays(folder: RunFolder) -> None:
    kept = BestPolicies(folder)
    write(kept, 20)
    write(kept, 40)
    folder.model_dir("policy").mkdir(parents=True)
    (folder.model_dir("policy") / "left.txt").write_text("from an earlier end of this run")
    kept.put_in_place(20)
    assert [path.name for path in folder.model_dir("policy").iterdir()] == ["config.json"]
    assert (folder.model_dir("critic") / "config.json").read_text() == '"of step 20"'
    assert kept.has(20)
    assert not list(folder.root.glob(".*"))


def test_only_the_best_stays_once_a_checkpoint_knows_of_it(folder: RunFolder) -> None:
    kept = BestPolicies(folder)
    for step in (0, 20, 40):
        write(kept, step)
    kept.prune(20)
    assert [kept.has(step) for step in (0, 20, 40)] == [False, True, False]
    kept.prune(None)
    assert not kept.has(20)


def test_without_a_critic_the_policy_alone_is_put_in_place(folder: RunFolder) -> None:
    kept = BestPolicies(folder)
    policy = Path(kept.directories(3)[0])
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    kept.put_in_place(3)
    assert folder.model_dir("policy").exists()
    assert not folder.model_dir("critic").exists()


def test_starting_the_stage_anew_forgets_them(folder: RunFolder) -> None:
    kept = BestPolicies(folder)
    write(kept, 20)
    folder.clear_stage("ppo")
    assert not kept.has(20)


def test_stopping_at_the_peak_needs_the_peak() -> None:
    assert TypeAdapter(GuardConfig).validate_python({}).export == "best"
    with pytest.raises(ConfigError, match=r"ppo\.guard\.action=stop .* needs export=best"):
        parse_config({**CONFIG, "ppo": {"guard": {"action": "stop", "export": "last"}}})
