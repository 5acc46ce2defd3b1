import re
from pathlib import Path

import pytest

from rayrlhf.config import load_config
from rayrlhf.telemetry.wording import Wording, nothing_to_learn, position_bias, wording

CONFIGS = Path(__file__).parents[3] / "configs"


def words_of(*overrides: str, config: str = "quickstart", right_or_wrong: bool = False, sft: bool = True) -> Wording:
    resolved = load_config(CONFIGS / f"{config}.yaml", overrides)
    return wording(resolved.model_dump(mode="json"), sft=sft, right_or_wrong=right_or_wrong)


@pytest.mark.parametrize(
    ("overrides", "algorithm"),
    [
        ([], "PPO"),
        (["ppo.advantage=grpo"], "GRPO"),
        (["ppo.advantage=rloo"], "RLOO"),
        (["ppo.advantage=reinforce"], "REINFORCE"),
        (["ppo.advantage=grpo", "ppo.scale=none"], "Dr. GRPO"),
        (["ppo.advantage=grpo", "ppo.scale=std"], "GRPO"),
    ],
)
def test_the_algorithm_is_named(overrides: list[str], algorithm: str) -> None:
    assert words_of(*overrides).algorithm == algorithm


def test_what_judges_is_named() -> None:
    assert words_of().judge == "reward models"  # the quickstart trains two
    assert words_of("reward.members=1").the_judge == "the reward model"
    assert words_of("ppo.rewards=[{kind: metric, name: chrf}]").the_judge == "chrF"
    assert words_of("ppo.rewards=[{kind: metric, name: chrf}, {kind: model}]").the_judge == "the rewards"
    assert words_of("ppo.rewards=[{kind: http, api: vllm, urls: [http://localhost]}]").judge == "reward server"
    judge = "{kind: judge, principles: be brief, urls: [http://localhost/v1], model: m}"
    assert words_of(f"ppo.rewards=[{judge}]").the_judge == "the judge"
    assert words_of(config="arithmetic_grpo").judge == "reward function"
    assert words_of(config="arithmetic_grpo", right_or_wrong=True).the_judge == "the verifier"


def test_no_sft_policy_where_there_was_none() -> None:
    assert (words_of().starting_policy, words_of().course) == ("the SFT policy", "SFT → PPO")
    words = words_of(config="arithmetic_grpo", sft=False)
    assert (words.starting_policy, words.course) == ("the starting policy", "start → GRPO")


def test_an_empty_configuration_is_spoken_of_as_the_defaults() -> None:
    assert wording({}, sft=True, right_or_wrong=False) == Wording()


@pytest.mark.parametrize(
    ("equal", "advantage", "told"),
    [
        (1.0, "grpo", "In update 3 .* GRPO had nothing to learn"),
        (1.0, "rloo", "RLOO had nothing to learn"),
        (0.99, "grpo", None),
        (1.0, "reinforce", None),
        (1.0, "gae", None),
        (None, "grpo", None),
    ],
)
def test_an_update_whose_groups_are_all_equal_is_told_of_a_group_estimator(
    equal: float | None, advantage: str, told: str | None
) -> None:
    said = nothing_to_learn({} if equal is None else {"reward/groups_equal": equal}, advantage, update=3)
    assert said is None if told is None else re.search(told, said or "")


def test_a_judge_that_goes_by_the_order_is_told_of() -> None:
    def said(bias: float, flips: float) -> str | None:
        return position_bias({"reward/position_bias": bias, "reward/position_flips": flips}, update=4)

    assert "In update 4 the judge preferred the response shown first with a mean probability of 0.22" in (
        said(-0.28, 0.1) or ""
    )
    assert "changed its verdict with the order in 50% of the comparisons" in (said(0.0, 0.5) or "")
    assert said(0.1, 0.1) is None
    assert position_bias({}, update=4) is None
