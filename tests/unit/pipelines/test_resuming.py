"""Every key of the configuration is used by a resumed run, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrlhf.config import RunConfig, load_config
from rayrlhf.errors import CheckpointError, ConfigError
from rayrlhf.pipelines import run
from rayrlhf.pipelines.checkpoint import CheckpointStore
from rayrlhf.pipelines.folder import RunFolder, flatten
from rayrlhf.pipelines.resuming import FIXED, KEPT_BY_WANDB, USED, USED_BY_STAGE, plan_resume, stage_state, why_refused

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
OUTPUT = {"sft": "sft", "reward": "reward_model", "ppo": "policy"}


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(QUICKSTART, [f"output_dir={tmp_path}", "ppo.updates=4", "reward.members=1", *overrides])


def checkpoint(folder: RunFolder, track: str, step: int) -> None:
    with CheckpointStore(folder.checkpoints(track), keep=2).write(step, {}) as directory:
        (directory / "learner.pt").write_bytes(b"x")


def begin(tmp_path: Path, *overrides: str, finished: tuple[str, ...] = (), **steps: int) -> RunFolder:
    """A run's folder as it stands after some stages and checkpoints."""
    started = config(tmp_path, *overrides)
    folder = RunFolder(started)
    folder.root.mkdir(parents=True)
    folder.save_config(started)
    for track, step in steps.items():
        checkpoint(folder, track, step)
    for stage in finished:
        (folder.root / OUTPUT[stage]).mkdir()
        (folder.root / OUTPUT[stage] / "config.json").write_text("{}")
    facts: dict[str, Any] = {stage: {"updates": 4} if stage == "ppo" else {} for stage in finished}
    (folder.root / "summary.json").write_text(json.dumps({"stages": facts}))
    return folder


def refusal(folder: RunFolder, changed: RunConfig) -> str:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        plan_resume(folder, changed)
    return str(caught.value)


UNDER_WAY = {"sft": {"sft": 3}, "reward": {"reward": 3}, "ppo": {"ppo": 2}}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_every_leaf_is_used_or_refused_while_its_stage_is_under_way(tmp_path: Path, stage: str) -> None:
    """The whole tree: what is not in the tables of used keys is refused, and nothing is in two of them."""
    earlier = tuple(list(OUTPUT)[: list(OUTPUT).index(stage)])
    folder = begin(tmp_path, finished=earlier, **UNDER_WAY[stage])
    started = config(tmp_path)
    states: Any = {name: stage_state(folder, started, name, folder.read_summary()) for name in OUTPUT}  # type: ignore[arg-type]
    keys = flatten(started.model_dump(mode="json"))
    assert len(keys) > 150
    for key in keys:
        tables = [table for table in (FIXED, USED, KEPT_BY_WANDB, *USED_BY_STAGE.values()) if within(key, table)]
        assert len(tables) <= 1 or key == "wandb.mode", key
        reason = why_refused(key, states, has_wandb_run=True)
        section = key.split(".")[0]
        if within(key, FIXED) or section in earlier or (section == "wandb" and key != "wandb.mode"):
            assert reason, key
        elif within(key, USED) or section not in OUTPUT or list(OUTPUT).index(section) > list(OUTPUT).index(stage):
            assert reason is None, key
        else:
            assert (reason is None) == within(key, USED_BY_STAGE[section]), key  # type: ignore[index]


def within(key: str, table: tuple[str, ...]) -> bool:
    return any(key == entry or key.startswith(f"{entry}.") for entry in table)


def test_every_entry_of_the_tables_is_a_key(tmp_path: Path) -> None:
    keys = flatten(config(tmp_path).model_dump(mode="json"))
    for entry in (*FIXED, *USED, *KEPT_BY_WANDB, *(entry for table in USED_BY_STAGE.values() for entry in table)):
        assert any(key == entry or key.startswith(f"{entry}.") for key in keys), entry


@pytest.mark.parametrize(
    ("override", "used"),
    [
        ("ppo.kl.coef=5.0", True),
        ("ppo.optim.lr=1.0e-3", True),
        ("ppo.optim.betas=[0.5, 0.6]", True),
        ("ppo.clip_low=0.1", True),
        ("ppo.updates=6", True),
        ("rollout.workers=2", True),
        ("checkpoint.every=1", True),
        ("ppo.prompts_per_step=16", False),
        ("ppo.advantage=grpo", False),
        ("ppo.rewards=[{kind: model, ensemble: min}]", False),
        ("ppo.evaluate_prompts=8", False),
        ("ppo.guard.action=stop", False),
        ("sft.optim.lr=1.0e-3", False),
        ("reward.loss.kind=hinge", False),
        ("data.heldout_fraction=0.2", False),
        ("sampling.temperature=0.5", False),
        ("ppo.updates=1", False),
    ],
)
def test_what_a_run_in_its_last_stage_takes(tmp_path: Path, override: str, used: bool) -> None:
    folder = begin(tmp_path, finished=("sft", "reward"), ppo=2)
    changed = config(tmp_path, override)
    key = override.partition("=")[0]
    if used:
        plan = plan_resume(folder, changed)
        assert plan.changed == [key]
        assert (plan.stages, plan.last_steps) == (["ppo"], {"ppo": 2})
    else:
        assert key in refusal(folder, changed)


def test_the_seed_is_told_with_both_values(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    told = refusal(folder, config(tmp_path, "seed=1"))
    assert "seed was 0 when" in told
    assert "and is 1 now: a resumed run keeps its seed, model, data, sampling" in told


def test_a_moved_reward_server_is_used(tmp_path: Path) -> None:
    def terms(url: str, api: str = "vllm") -> str:
        return f"ppo.rewards=[{{kind: http, api: {api}, urls: [{url}]}}]"

    folder = begin(tmp_path, terms("http://a:1"), finished=("sft", "reward"), ppo=2)
    assert plan_resume(folder, config(tmp_path, terms("http://b:2"))).changed == ["ppo.rewards.0.urls"]
    assert "ppo.rewards.0.api" in refusal(folder, config(tmp_path, terms("http://a:1", "openrlhf")))


def test_how_a_function_is_called_may_change_and_what_it_is_called_with_not(tmp_path: Path) -> None:
    def terms(*more: str) -> str:
        return f"ppo.rewards=[{{{', '.join(['kind: function', 'target: a:f', *more])}}}]"

    folder = begin(tmp_path, terms(), finished=("sft", "reward"), ppo=2)
    changed = plan_resume(folder, config(tmp_path, terms("timeout_s: 5.0", "concurrency: 8"))).changed
    assert changed == ["ppo.rewards.0.concurrency", "ppo.rewards.0.timeout_s"]
    assert "ppo.rewards.0.per" in refusal(folder, config(tmp_path, terms("per: group")))
    assert "ppo.rewards.0.name" in refusal(folder, config(tmp_path, terms("name: other")))


def test_before_its_first_checkpoint_a_stage_takes_anything(tmp_path: Path) -> None:
    folder = begin(tmp_path, finished=("sft", "reward"))
    plan = plan_resume(folder, config(tmp_path, "ppo.prompts_per_step=16", "ppo.updates=1"))
    assert plan.changed == ["ppo.prompts_per_step", "ppo.updates"]
    assert plan.last_steps == {"ppo": -1}


def test_a_supervised_stage_under_way_grows_and_does_not_shrink(tmp_path: Path) -> None:
    folder = begin(tmp_path, "sft.epochs=2", sft=30)
    assert plan_resume(folder, config(tmp_path, "sft.epochs=3", "sft.optim.weight_decay=0.1")).last_steps["sft"] == 30
    assert "sft.epochs=1 is less than the 2" in refusal(folder, config(tmp_path, "sft.epochs=1"))
    assert "sft.max_steps=12 is less than the 30" in refusal(
        folder, config(tmp_path, "sft.epochs=2", "sft.max_steps=12")
    )


def test_a_trained_member_fixes_the_stage(tmp_path: Path) -> None:
    folder = begin(tmp_path, finished=("sft",))
    folder.trained("reward").mkdir(parents=True)
    assert "a member of the ensemble is trained" in refusal(folder, config(tmp_path, "reward.optim.lr=1.0e-3"))


def test_a_finished_run_goes_on_with_more_updates(tmp_path: Path) -> None:
    folder = begin(tmp_path, finished=("sft", "reward", "ppo"), ppo=4)
    assert plan_resume(folder, config(tmp_path)).stages == []
    plan = plan_resume(folder, config(tmp_path, "ppo.updates=6"))
    assert (plan.stages, plan.last_steps, plan.changed) == (["ppo"], {"ppo": 4}, ["ppo.updates"])
    assert "less than the 4 updates" in refusal(folder, config(tmp_path, "ppo.updates=3"))
    # Gone on with and killed: the old export is still there, and the checkpoint is beyond its updates.
    folder.save_config(config(tmp_path, "ppo.updates=6"))
    checkpoint(folder, "ppo", 5)
    assert plan_resume(folder, config(tmp_path, "ppo.updates=6")).last_steps == {"ppo": 5}
    assert "less than the 5 updates" in refusal(folder, config(tmp_path, "ppo.updates=4"))


def test_more_updates_need_the_last_checkpoint_and_a_guard_that_did_not_stop(tmp_path: Path) -> None:
    folder = begin(tmp_path, finished=("sft", "reward", "ppo"))
    assert "no checkpoint of its end" in refusal(folder, config(tmp_path, "ppo.updates=6"))
    summary = folder.read_summary()
    summary["stages"]["ppo"]["guard_stopped"] = True
    (folder.root / "summary.json").write_text(json.dumps(summary))
    assert "the guard has ended" in refusal(folder, config(tmp_path, "ppo.updates=6"))


def test_no_stage_is_put_before_one_that_has_begun_without_it(tmp_path: Path) -> None:
    folder = begin(tmp_path, "stages=[ppo]", ppo=2)
    assert "stage ppo has begun without it" in refusal(folder, config(tmp_path, "stages=[sft, ppo]"))
    later = begin(tmp_path / "later", "stages=[sft]", finished=("sft",))
    plan = plan_resume(later, config(tmp_path / "later", "stages=[sft, reward, ppo]"))
    assert plan.stages == ["reward", "ppo"]


def test_a_wandb_run_keeps_its_project(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert plan_resume(folder, config(tmp_path, "wandb.project=other")).changed == ["wandb.project"]
    folder.begin_wandb_run(enabled=True)
    assert "its W&B run has begun" in refusal(folder, config(tmp_path, "wandb.project=other"))
    assert plan_resume(folder, config(tmp_path, "wandb.mode=offline")).changed == ["wandb.mode"]


def test_nothing_to_do_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path, finished=("sft", "reward", "ppo"), ppo=4)
    before = sorted(path.name for path in folder.root.rglob("*"))

    def started(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    for name in ("check_run", "connect", "Recorder"):
        monkeypatch.setattr(run, name, started)
    assert run.run_stages(config(tmp_path), resume=True) == folder.root
    assert "Nothing to do: sft, reward, ppo" in capsys.readouterr().out
    assert sorted(path.name for path in folder.root.rglob("*")) == before


def test_a_refused_resume_leaves_the_configuration_as_it_was(tmp_path: Path) -> None:
    folder = begin(tmp_path, finished=("sft", "reward"), ppo=2)
    before = (folder.root / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="prompts_per_step"):
        run.run_stages(config(tmp_path, "ppo.prompts_per_step=16", "ppo.kl.coef=9.0"), resume=True)
    with pytest.raises(Exception, match="999 CPU"):
        run.run_stages(config(tmp_path, "rollout.cpus=999"), resume=True)
    assert (folder.root / "config.yaml").read_text() == before
    assert yaml.safe_load(before)["ppo"]["kl"]["coef"] == 0.1


def test_the_list_of_backbones_is_kept(tmp_path: Path) -> None:
    two = ("reward.members=2", "reward.base=[a, b]")
    folder = begin(tmp_path, *two, finished=("sft",), reward=3)
    plan_resume(folder, config(tmp_path, *two))
    with pytest.raises(ConfigError, match=r"reward\.base was \['a', 'b'\] when .* is \['a', 'c'\] now"):
        plan_resume(folder, config(tmp_path, "reward.members=2", "reward.base=[a, c]"))
