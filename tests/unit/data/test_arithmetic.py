import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.config import TaskConfig, load_config
from rayrlhf.data.arithmetic import Arithmetic, answer_of, best_answer, gold, is_right
from rayrlhf.data.dataset import load_prompts, task_best_gold, task_gold

CONFIGS = Path(__file__).parents[3] / "configs"


def task(seed: int = 0, **changes: int | float) -> Arithmetic:
    return Arithmetic(TaskConfig(name="arithmetic", **changes), seed=seed, heldout_fraction=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("22", 22),
        ("7+5=12, 1+0+1=2: 22", 22),
        (" 22 \n", 22),
        ("-3", -3),
        ("22.", None),
        ("2.5", None),
        ("22 apples", None),
        ("", None),
        ("22: ", None),
    ],
)
def test_the_answer_is_the_whole_number_a_response_ends_with(response: str, answer: int | None) -> None:
    assert answer_of(response) == answer


@pytest.mark.parametrize(
    ("prompt", "response", "value"),
    [
        ("17+5=", "7+5=12, 1+0+1=2: 22", 1.0),
        ("17+5=", "22", 1.0),
        ("17+5=", "7+5=12, 1+0=1: 12", 0.0),  # the carry was forgotten
        ("17+5=", "22: 7+5", 0.0),
        ("42-17=", "12-7=5, 4-1-1=2: 25", 1.0),
        ("42-17=", "12-7=5, 4-1=3: 35", 0.0),
        ("17*5=", "85", 0.0),  # no question of this task
    ],
)
def test_gold_and_the_verifier_worked_by_hand(prompt: str, response: str, value: float) -> None:
    assert gold(prompt, response) == value
    reference = {"17+5=": "22", "42-17=": "25"}.get(prompt)
    assert is_right(prompt, response, reference) == (None if reference is None else value)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_gold_is_defined_for_any_text(prompt: str, response: str) -> None:
    assert gold(prompt, response) in (0.0, 1.0)
    assert gold("17+5=", response) in (0.0, 1.0)


def test_every_reference_is_right_by_pythons_own_arithmetic_and_can_be_reached() -> None:
    prompts = task().prompts()
    for row in prompts.train + prompts.heldout:
        assert isinstance(row.prompt, str)
        first, sign, second = re.fullmatch(r"(\d+)([+-])(\d+)=", row.prompt).groups()  # type: ignore[union-attr]
        assert row.reference == str(int(first) + int(second) * (1 if sign == "+" else -1))
        assert is_right(row.prompt, best_answer(row.prompt), row.reference) == 1.0
        assert gold(row.prompt, best_answer(row.prompt)) == 1.0


def numbers(prompt: object) -> frozenset[str]:
    return frozenset(re.findall(r"\d+", str(prompt)))


def test_a_held_out_pair_of_numbers_is_trained_in_no_form() -> None:
    made = task(demonstrations=3000, preferences=3000)
    heldout = {numbers(row.prompt) for row in made.prompts().heldout}
    assert 450 < len(heldout) < 520  # a tenth of the 4,851 pairs of 2 to 99
    for split in (made.prompts(), made.demonstrations(), made.preferences()):
        assert not heldout & {numbers(row.prompt) for row in split.train}
        assert {numbers(row.prompt) for row in split.heldout} <= heldout


def test_a_seed_makes_the_same_task_and_another_seed_another() -> None:
    for read in (Arithmetic.prompts, Arithmetic.demonstrations, Arithmetic.preferences):
        small = {"demonstrations": 50, "preferences": 50}
        assert read(task(1, **small)) == read(task(1, **small))
        assert read(task(1, **small)) != read(task(2, **small))


def test_workings_are_well_formed_and_most_of_their_answers_wrong() -> None:
    rows = task(demonstrations=4000).demonstrations().train
    assert all(re.fullmatch(r"\d+[+-]\d=\d+, \d[+-]\d([+-]1)?=\d+: (\d+|\?)", row.response) for row in rows)
    right = np.array([gold(str(row.prompt), row.response) for row in rows])
    carried = np.array([bool(re.search(r"[+-]1=.*:", row.response.split(", ")[1])) for row in rows])
    gave_up = np.array([row.response.endswith("?") for row in rows])
    assert 0.2 < right.mean() < 0.3
    assert carried.mean() < 0.4, "about half of the questions have a carry"
    assert 0.5 < gave_up.mean() < 0.6


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_preferences_are_right_over_wrong_but_for_the_label_noise(noise: float) -> None:
    pairs = task(preferences=2000, label_noise=noise).preferences().train
    gaps = [gold(str(p.prompt), p.chosen) - gold(str(p.prompt), p.rejected) for p in pairs]
    assert set(gaps) <= {1.0, -1.0}
    assert abs(gaps.count(-1.0) / 2000 - noise) <= 4 * np.sqrt(noise * (1 - noise) / 2000)


def test_a_configuration_picks_the_task_and_its_gold() -> None:
    config = load_config(CONFIGS / "arithmetic_grpo.yaml")
    assert not config.ppo.uses_critic
    assert config.ppo.reward_models == []
    prompts = load_prompts(config)
    true_reward = task_gold(config)
    assert true_reward is not None
    assert true_reward("17+5=", "22") == 1.0
    assert task_best_gold(config, [str(row.prompt) for row in prompts.heldout]) == 1.0
    inn = load_config(CONFIGS / "quickstart.yaml")
    assert task_gold(inn)("17+5=", "22") == 0.0  # type: ignore[misc]
