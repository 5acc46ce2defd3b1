import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.config import TaskConfig
from rayrlhf.data.innkeeper import Innkeeper, best_answer, gold, remarks_of
from rayrlhf.data.innkeeper_language import COURTESIES, OPENINGS, RUDE, Remark, all_remarks, grammar

PROMPT = "Guest: The soup was cold and the bed was cosy.\nHost:"


def task(seed: int = 0, **changes: int | float) -> Innkeeper:
    return Innkeeper(TaskConfig(**changes), seed=seed, heldout_fraction=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("", 0.0),
        ("I am sorry the soup was cold.", 0.15 + 0.2),
        ("I am sorry about the cold soup. We will warm the soup for you.", 0.3 + 0.2),
        ("We will tell the maid about the bed.", 0.15 + 0.2),
        ("Thank you for telling us.", 0.1 + 0.2),
        ("Thank you for telling us. Have a restful evening.", 0.2 + 0.2),
        ("Thank you for telling us. Thank you for telling us.", 0.1 - 0.1),  # said twice: a fault, and no form
        ("I am sorry the soup was cold. I am busy now.", 0.15 - 0.1),
        ("We will cook a new soup for you.", 0.0),  # a deed that does not fit
        ("I am sorry the soup was cold. Soup of the day", 0.15 - 0.1),  # not a sentence
        (" ".join(COURTESIES), 0.2 - 0.2),  # eight courtesies where six sentences are enough
    ],
)
def test_gold_worked_by_hand(answer: str, value: float) -> None:
    assert gold(PROMPT, answer) == pytest.approx(max(0.0, value))


def test_the_best_answer_has_gold_1_for_every_prompt_and_more_of_the_same_loses() -> None:
    prompts = task().prompts()
    for row in prompts.train + prompts.heldout:
        assert isinstance(row.prompt, str)
        best = best_answer(row.prompt)
        assert gold(row.prompt, best) == pytest.approx(1.0)
        assert gold(row.prompt, best + " " + COURTESIES[5]) < 0.75
        assert gold(row.prompt, best + " " + RUDE[0]) < 0.75


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_gold_is_defined_for_any_text(prompt: str, response: str) -> None:
    assert 0.0 <= gold(prompt, response) <= 1.0
    assert 0.0 <= gold(PROMPT, response) <= 1.0


def test_every_remark_is_understood_in_every_wording() -> None:
    for remark in all_remarks():
        for opening in OPENINGS:
            text = f"Guest: {opening.format(x=remark.thing, p=remark.state)}\nHost:"
            assert remarks_of(text) == {remark}
    assert remarks_of("Guest: The soup was cosy.\nHost:") == set()
    assert remarks_of(PROMPT) == {Remark("soup", "cold"), Remark("bed", "cosy")}


def test_no_sentence_has_two_meanings() -> None:
    # Every state of every thing has two acknowledgements and two deeds.
    assert len(grammar()) == 4 * len(all_remarks()) + len(COURTESIES) + len(RUDE)


def test_a_seed_makes_the_same_task_and_another_seed_another() -> None:
    for read in (Innkeeper.prompts, Innkeeper.demonstrations, Innkeeper.preferences):
        small = {"demonstrations": 50, "preferences": 50}
        assert read(task(1, **small)) == read(task(1, **small))
        assert read(task(1, **small)) != read(task(2, **small))


def test_no_held_out_prompt_occurs_in_training() -> None:
    made = task(demonstrations=500, preferences=500)
    heldout = {row.prompt for row in made.prompts().heldout}
    assert len(heldout) == 240
    for split in (made.prompts(), made.demonstrations(), made.preferences()):
        assert not heldout & {row.prompt for row in split.train}
        assert {row.prompt for row in split.heldout} <= heldout


def test_demonstrations_are_of_mixed_quality() -> None:
    golds = [gold(str(row.prompt), row.response) for row in task(demonstrations=2000).demonstrations().train]
    assert 0.35 < np.mean(golds) < 0.6
    assert np.std(golds) > 0.2
    assert 0.005 < np.mean(np.array(golds) > 0.95) < 0.15


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25])
def test_labels_are_flipped_as_often_as_configured(noise: float) -> None:
    pairs = task(preferences=2000, label_noise=noise).preferences().train
    gaps = [gold(str(p.prompt), p.chosen) - gold(str(p.prompt), p.rejected) for p in pairs]
    flipped = float(np.mean(np.array(gaps) < 0))
    assert min(abs(g) for g in gaps) >= 0.3 - 1e-9
    assert abs(flipped - noise) <= 4 * np.sqrt(noise * (1 - noise) / 2000)
