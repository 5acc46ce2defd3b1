import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrlhf.config import AutoscaleConfig, RewardConfig, RunConfig, load_config, parse_config
from rayrlhf.errors import ConfigError

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def refuse(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_parses_and_survives_a_round_trip(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_config_and_telemetry_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, rayrlhf.config, rayrlhf.telemetry.metrics, rayrlhf.cli.main;"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'wandb') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_unknown_keys_are_refused_with_the_nearest_valid_one() -> None:
    assert "unknown key ppo.clip_hi (did you mean ppo.clip_high?)" in refuse("ppo.clip_hi=0.3")
    assert "unknown key rolout (did you mean rollout?)" in refuse("rolout.workers=2")
    assert "unknown key ppo.kl.zzz (valid keys are coef, " in refuse("ppo.kl.zzz=1")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.top_p=0.9", "sampling.top_p=0.9"),
        ("sampling.top_k=50", "sampling.top_k=50"),
        ("ppo.minibatches=7", "ppo.minibatches=7 must divide prompts_per_step * samples_per_prompt"),
        ("model.max_length=10", "exceeds model.max_length = 10"),
        ("model.max_length=4096", "exceeds model.init.max_position_embeddings"),
        ("stages=[ppo, sft]", "must be distinct and in the order"),
        ("rollout.workers=two", "rollout.workers='two' must be a valid integer"),
        (
            "name=on",
            "name must be a string, and YAML reads what was given as a truth value (as on, off, yes, no are): quote it",
        ),
        ("name=7", "name must be a string, and YAML reads what was given as a number: quote it, name='\"...\"'"),
        ("ppo.updates=true", "ppo.updates=True must be a valid integer"),
        ("ppo.kl.estimator=k3", "needs ppo.kl.placement=loss"),
        ("model.path=/somewhere", "exactly one of model.path"),
        ("ppo.micro_batch_tokens=16", "cannot hold one sequence"),
        ("reward.micro_batch_tokens=100", "cannot hold a pair of sequences"),
        ("data.task=null", "stage sft needs data.demonstrations"),
        ("seed=-1", "seed=-1"),
        ("sft.optim.lr=.nan", "sft.optim.lr"),
        ("reward.loss.kind=bt", "reward.loss.kind='bt' must be 'bradley_terry', 'margin'"),
        ("ppo.rewards=[]", "ppo.rewards must have at least 1 item"),
        (
            "ppo.rewards=[{kind: magic}]",
            "ppo.rewards.0.kind='magic' must be one of 'model', 'metric', 'function', 'http'",
        ),
        ("ppo.rewards=[{kind: http, api: vllm}]", "ppo.rewards.0.urls is required"),
        (
            "ppo.rewards=[{kind: metric, name: chrf, wieght: 2}]",
            "ppo.rewards.0.wieght (did you mean ppo.rewards.0.weight?)",
        ),
        ("ppo.rewards=[{kind: function, target: nonsense}]", "ppo.rewards.0.target='nonsense'"),
    ],
)
def test_contradictions_name_the_key_and_the_value(override: str, sentence: str) -> None:
    assert sentence in refuse(override)


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("sft", ["data.max_prompt_tokens=300", "ppo.micro_batch_tokens=16", "scoring.micro_batch_tokens=16"]),
        ("reward", ["sampling.max_new_tokens=300", "sft.micro_batch_tokens=16"]),
        ("ppo", ["sft.micro_batch_tokens=16", "reward.micro_batch_tokens=16"]),
    ],
)
def test_lengths_are_asked_of_the_stages_that_run_alone(stage: str, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"exceeds|cannot hold"):
        load_config(QUICKSTART, overrides)
    assert load_config(QUICKSTART, [*overrides, f"stages=[{stage}]"]).stages == [stage]


def test_rules_of_two_keys() -> None:
    told = refuse("reward.members=2", "reward.heads=4")
    assert "reward.members=2 and reward.heads=4 exclude each other" in told
    told = refuse("reward.base=[a, b, c]")
    assert "reward.base lists 3 backbones for reward.members=2: each member has one" in told
    told = refuse("reward.length_balance=0.5", "reward.loss.kind=plackett_luce")
    assert (
        "reward.length_balance weighs pairs, and reward.loss.kind=plackett_luce learns from none: set it to 0" in told
    )
    told = refuse("reward.loss.kind=rao_kupper", "reward.loss.tie_parameter=1.0")
    assert "tie_parameter=1 must be above 1 for rao_kupper" in told
    told = refuse("ppo.guard.judge=/a", "ppo.rewards=[{kind: model, path: /a}]")
    assert "ppo.guard.judge=/a is rewarded too" in told


@pytest.mark.parametrize("key", ["ppo.importance_band", "ppo.sequence_band"])
def test_a_band_is_around_one_and_needs_a_recomputed_denominator(key: str) -> None:
    for given in ("[1.5, 2.0]", "[0.5, 0.9]", "[0.0, 2.0]", "[-1, 2]", "[5.0, 0.5]", "[1.0, 2.0]", "[0.5, 1.0]"):
        assert f"{key}=[" in refuse(f"{key}={given}")
        assert "must be [low, high] with 0 < low < 1 < high" in refuse(f"{key}={given}")
    for given in ("[0.5]", "[0.5, 2.0, 3.0]", "0.5", "[0.5, .inf]", "[0.5, two]"):
        assert key in refuse(f"{key}={given}")
    told = refuse(f"{key}=[0.5, 2]", "ppo.old_logprobs=rollout")
    assert f"{key} would mask nothing with ppo.old_logprobs=rollout, where every weight is 1" in told


def test_bands_that_would_mask_nothing_are_told_together() -> None:
    told = refuse("ppo.importance_band=[0.5, 2]", "ppo.sequence_band=[0.5, 2]", "ppo.old_logprobs=rollout")
    assert "ppo.importance_band and ppo.sequence_band would mask nothing" in told
    assert load_config(QUICKSTART, ["ppo.old_logprobs=rollout", "ppo.max_staleness=1"]).ppo.corrects_off_policy


def test_a_group_baseline_needs_a_group() -> None:
    assert "samples_per_prompt >= 2" in refuse("ppo.advantage=rloo", "ppo.samples_per_prompt=1", "ppo.minibatches=1")


def test_overrides_apply_in_order_and_scientific_notation_is_a_number() -> None:
    config = load_config(QUICKSTART, ["ppo.kl.coef=1e-6", "seed=3", "seed=4", "wandb.mode=disabled"])
    assert config.ppo.kl.coef == 1e-6
    assert config.seed == 4
    assert config.wandb.mode == "disabled"


@pytest.mark.parametrize("override", ["seed", "=3", "ppo..lam=1", "sft.epochs.sub=1"])
def test_malformed_overrides_say_so(override: str) -> None:
    assert repr(override) in refuse(override)


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("a: [1, 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "torn.yaml")


def test_a_role_starts_within_the_bounds_of_its_autoscaling() -> None:
    config = load_config(QUICKSTART, ["rollout.autoscale.min=1", "rollout.autoscale.max=4"])
    assert (config.rollout.autoscale, config.scoring.autoscale) == (AutoscaleConfig(min=1, max=4), None)
    for bounds in ("{min: 3, max: 4}", "{min: 1, max: 1}", "{min: 4, max: 1}"):
        with pytest.raises(
            ConfigError, match=r"scoring: workers=2 with autoscale.* must be such that min <= workers <= max"
        ):
            load_config(QUICKSTART, ["scoring.workers=2", f"scoring.autoscale={bounds}"])
    with pytest.raises(ConfigError, match=r"scoring.autoscale.min=0 must be greater than or equal to 1"):
        load_config(QUICKSTART, ["scoring.autoscale={min: 0, max: 2}"])


def test_importance_correction_follows_staleness() -> None:
    assert load_config(QUICKSTART).ppo.effective_importance_cap is None
    assert load_config(QUICKSTART, ["ppo.max_staleness=1"]).ppo.effective_importance_cap == 2.0
    assert isinstance(load_config(QUICKSTART), RunConfig)
    assert not load_config(QUICKSTART).ppo.corrects_off_policy
    for override in (
        "ppo.max_staleness=1",
        "ppo.importance_cap=3",
        "ppo.importance_band=[0.5, 5]",
        "ppo.sequence_band=[0.5, 2]",
    ):
        ppo = load_config(QUICKSTART, [override]).ppo
        assert ppo.corrects_off_policy
        assert ppo.effective_importance_cap == {"ppo.max_staleness=1": 2.0, "ppo.importance_cap=3": 3.0}.get(override)


def test_off_is_a_word_where_it_is_one_of_the_choices() -> None:
    assert load_config(QUICKSTART, ["ppo.guard.action=off"]).ppo.guard.action == "off"


def test_each_member_has_the_base_that_is_listed_for_it() -> None:
    tree: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
    del tree["reward"]["members"]

    def reward(base: Any) -> RewardConfig:
        return parse_config(tree | {"name": "n", "reward": tree["reward"] | {"base": base}}).reward

    assert (reward(["a", "b", "a"]).members, reward(["a", "b", "a"]).bases) == (3, ["a", "b", "a"])
    assert (reward("a").members, reward("a").bases) == (1, ["a"])
    assert reward(None).bases == []
    assert load_config(QUICKSTART, ["reward.base=a"]).reward.bases == ["a", "a"]
    again = parse_config(load_config(QUICKSTART, ["reward.base=[a, b]"]).model_dump(mode="json"))
    assert again.reward.bases == ["a", "b"]
    assert "reward.base" in refuse("reward.base=3")
    assert "reward.base" in refuse("reward.base=[]")
