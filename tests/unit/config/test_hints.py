"""Names that other libraries have for our keys, and misspelt ones, are answered with the key that was meant."""

from pathlib import Path

import pytest

from rayrlhf.config import hints, load_config
from rayrlhf.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def refuse(override: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [override])
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("ppo.algorithm=grpo", "unknown key ppo.algorithm (did you mean ppo.advantage=grpo?)"),
        ("algorithm=ppo", "unknown key algorithm (did you mean ppo.advantage=gae?)"),
        ("algorithm.adv_estimator=rloo", "unknown key algorithm.adv_estimator (did you mean ppo.advantage=rloo?)"),
        ("ppo.grpo=true", "did you mean ppo.advantage=grpo?"),
        ("stages=[sft, grpo]", "stages.1='grpo' must be 'sft', 'reward' or 'ppo' (did you mean ppo.advantage=grpo?)"),
        ("ppo.algorithm=dr-grpo", "did you mean ppo.advantage=grpo and ppo.scale=none?"),
        ("ppo.scale_rewards=false", "did you mean ppo.scale?"),
        ("ppo.loss_agg_mode=token-mean", "did you mean ppo.loss_aggregation?"),
        ("ppo.advantage=ppo", "(did you mean ppo.advantage=gae?)"),
        ("ppo.learning_rate=1e-4", "unknown key ppo.learning_rate (did you mean ppo.optim.lr?)"),
        ("ppo.lr=1e-4", "did you mean ppo.optim.lr?"),
        ("sft.lr=1e-4", "did you mean sft.optim.lr?"),
        ("reward.learning_rates=1e-4", "did you mean reward.optim.lr?"),  # misspelt, and of another library
        ("lr=1e-4", "did you mean ppo.optim.lr?"),
        ("optim.lr=1e-4", "did you mean ppo.optim.lr?"),
        ("ppo.kl_coef=0.1", "did you mean ppo.kl.coef?"),
        ("ppo.init_kl_coef=0.1", "did you mean ppo.kl.coef?"),
        ("grpo.beta=0.04", "unknown key grpo.beta (did you mean ppo.kl.coef?)"),
        ("ppo.num_generations=8", "did you mean ppo.samples_per_prompt?"),
        ("actor_rollout_ref.rollout.n=5", "did you mean ppo.samples_per_prompt?"),
        ("ppo.n_samples_per_prompt=8", "did you mean ppo.samples_per_prompt?"),
        ("ppo.rollout_batch_size=128", "did you mean ppo.prompts_per_step?"),
        ("sft.batch_size=128", "did you mean sft.prompts_per_step?"),
        ("ppo.cliprange=0.2", "did you mean ppo.clip_low and ppo.clip_high?"),
        ("gamma=0.99", "did you mean ppo.gamma?"),
        ("ppo.kl.gamma=0.99", "did you mean ppo.gamma?"),
        ("ppo.max_new_tokens=64", "did you mean sampling.max_new_tokens?"),
        ("model.max_tokens=64", "did you mean sampling.max_new_tokens?"),
        ("ppo.temperature=0.7", "did you mean sampling.temperature?"),
        ("ppo.temprature=0.7", "did you mean sampling.temperature?"),
        ("ppo.workers=2", "did you mean rollout.workers or scoring.workers?"),
        ("evaluate_prompts=8", "did you mean ppo.evaluate_prompts?"),
        ("ppo.reward_funcs=a", "did you mean ppo.rewards?"),
        ("ppo.max_steps=3", "did you mean ppo.updates?"),
        ("sft.max_step=3", "did you mean sft.max_steps?"),
        ("ppo.kl=0.1", "ppo.kl=0.1 must be a section with keys of its own: coef, "),
        ("zzz.yyy=1", "unknown key zzz.yyy (valid keys are checkpoint, cluster, "),
    ],
)
def test_the_key_that_was_meant_is_named(override: str, meant: str) -> None:
    assert meant in refuse(override)


def test_every_alias_leads_to_a_key_that_is_there() -> None:
    tree = set(hints._tree())
    targets = {
        part.format(stage=stage) for ours in hints._ALIASES for part in ours.split(" and ") for stage in ("ppo",)
    }
    assert targets <= tree
    for ours in hints._ALIASES:
        if "{stage}" in ours:
            assert {ours.format(stage=stage) for stage in ("sft", "reward")} <= tree


def test_no_name_has_two_meanings() -> None:
    names = [name for group in hints._ALIASES.values() for name in group.split()]
    assert len(names) == len(set(names))


def test_a_reward_term_without_a_kind_is_told_the_kinds() -> None:
    told = refuse('ppo.rewards=[{target: "rewards:length"}]')
    assert "ppo.rewards.0 needs a kind: model (a reward model), metric (" in told
    assert "with target it is kind: function" in told
    assert "ppo.rewards.0='rewards:length' must be a mapping with a kind" in refuse('ppo.rewards=["rewards:length"]')
    told = refuse("ppo.rewards=[{kind: function, target: nonsense}]")
    assert "with urls it is kind: http" in refuse('ppo.rewards=[{name: judge, urls: ["http://a"]}]')
    assert "ppo.rewards.0.target='nonsense' must have the form package.module:function" in told
