"""What follows from ppo.advantage where it is not said."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrlhf.config import KLConfig, PPOConfig, load_config, parse_config
from rayrlhf.errors import ConfigError

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def resolved(*overrides: str) -> dict[str, Any]:
    """The section `ppo` as config.yaml shows it."""
    shown: dict[str, Any] = load_config(QUICKSTART, overrides).model_dump(mode="json")["ppo"]
    return shown


@pytest.mark.parametrize(
    ("advantage", "whiten", "normalize", "scale", "placement", "estimator"),
    [
        ("gae", True, True, "none", "reward", "k1"),
        ("reinforce", True, True, "none", "reward", "k1"),
        ("rloo", False, False, "none", "loss", "k3"),
        ("grpo", False, False, "std", "loss", "k3"),
    ],
)
def test_each_estimator_is_that_of_its_paper(
    advantage: str, whiten: bool, normalize: bool, scale: str, placement: str, estimator: str
) -> None:
    ppo = resolved(f"ppo.advantage={advantage}")
    assert ppo["whiten_advantages"] is whiten
    assert ppo["normalize_reward"] is normalize
    assert ppo["scale"] == scale
    assert (ppo["kl"]["placement"], ppo["kl"]["estimator"]) == (placement, estimator)
    assert ppo["kl"]["coef"] == 0.1, "the configuration's own coefficient stays"
    assert ppo["loss_aggregation"] == "token"


def test_what_is_said_is_kept_and_null_is_not_said() -> None:
    ppo = resolved("ppo.advantage=grpo", "ppo.whiten_advantages=true", "ppo.scale=none", "ppo.kl.placement=reward")
    assert (ppo["whiten_advantages"], ppo["scale"]) == (True, "none")
    assert (ppo["kl"]["placement"], ppo["kl"]["estimator"]) == ("reward", "k1")
    ppo = resolved("ppo.advantage=rloo", "ppo.whiten_advantages=null", "ppo.kl.estimator=k2", "ppo.kl.placement=null")
    assert ppo["whiten_advantages"] is False
    assert (ppo["kl"]["placement"], ppo["kl"]["estimator"]) == ("loss", "k2")
    assert resolved("ppo.kl=null")["kl"]["estimator"] == "k1"


def test_a_kl_in_the_loss_is_not_an_estimate_without_a_gradient() -> None:
    assert resolved("ppo.kl.placement=loss")["kl"]["estimator"] == "k3"


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo", "reinforce"])
def test_a_shown_configuration_means_itself(advantage: str) -> None:
    config = load_config(QUICKSTART, [f"ppo.advantage={advantage}"])
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_the_same_from_python() -> None:
    ppo = PPOConfig(advantage="grpo", kl=KLConfig(coef=0.2))
    assert (ppo.kl.placement, ppo.kl.estimator, ppo.kl.coef, ppo.scale) == ("loss", "k3", 0.2, "std")
    assert PPOConfig().whiten_advantages


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["ppo.scale=std"],
            "ppo.scale=std divides by a group's deviation, which ppo.advantage=grpo alone does, not gae",
        ),
        (["ppo.scale=max"], "ppo.scale='max' must be 'std' or 'none'"),
        (["ppo.loss_aggregation=mean"], "ppo.loss_aggregation='mean' must be 'token' or 'sequence'"),
        (["ppo.advantage=gro"], "ppo.advantage='gro' must be 'gae'"),
        (["ppo.advantage=grpo", "ppo.kl=3"], "ppo.kl=3"),
        (["ppo.advantage=grpo", "ppo.kl.placement=nowhere"], "ppo.kl.placement='nowhere' must be 'reward' or 'loss'"),
        (["ppo.advantage=grpo", "ppo.kl.placement=reward", "ppo.kl.estimator=k3"], "needs ppo.kl.placement=loss"),
        (["ppo.truncation=bootstrap", "ppo.missing_eos_penalty=1"], "replaces by the critic's value: set one"),
    ],
)
def test_contradictions_are_told(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, overrides)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["multi30k_translate", "summarize_rouge"])
def test_shipped_configurations_say_what_they_were_measured_with(name: str) -> None:
    ppo = load_config(ROOT / "configs" / f"{name}.yaml").ppo
    assert (ppo.advantage, ppo.whiten_advantages, ppo.normalize_reward) == ("rloo", True, True)
    assert (ppo.kl.placement, ppo.kl.estimator) == ("reward", "k1")
