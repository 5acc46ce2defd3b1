"""Pairs of a policy's own responses: who meets whom, and how they are spread over the updates."""

import json
from pathlib import Path

import pytest

from rayrlhf.data.on_policy import Answer, Bin, bins_of, pair_up, read_answers, shares_of
from rayrlhf.errors import DataError


def answers(*texts: tuple[int, str, str]) -> list[Answer]:
    return [Answer(update=update, prompt=prompt, response=response) for update, prompt, response in texts]


def test_a_group_gives_pairs_of_different_texts_each_used_once() -> None:
    group = [(3, "p", text) for text in "abcdd"]
    pairs = pair_up(answers(*group, (3, "q", "x"), (3, "q", "x")), seed=0)
    assert len(pairs) == 2  # of the four texts of p; those of q are one text
    assert sorted(text for pair in pairs for text in (pair.first.response, pair.second.response)) == list("abcd")
    assert {(pair.first.prompt, pair.second.prompt, pair.update) for pair in pairs} == {("p", "p", 3)}


def test_the_draw_is_that_of_the_seed_and_of_no_other_prompt() -> None:
    group, other = [(1, "p", text) for text in "abcdefgh"], [(1, "q", text) for text in "uvwx"]
    alone = pair_up(answers(*group), seed=4)
    assert pair_up(answers(*other, *group), seed=4)[2:] == alone
    assert pair_up(answers(*group), seed=5) != alone


def test_what_is_left_alone_meets_the_same_prompt_at_the_next_update() -> None:
    pairs = pair_up(answers((9, "p", "d"), (1, "p", "a"), (5, "p", "b"), (7, "p", "c"), (2, "q", "z")), seed=0)
    met = [(pair.first.response, pair.second.response, pair.update) for pair in pairs]
    assert met == [("a", "b", 5), ("c", "d", 9)]


def test_the_same_text_again_is_no_pair_and_the_newer_one_waits() -> None:
    pairs = pair_up(answers((1, "p", "a"), (5, "p", "a"), (7, "p", "b")), seed=0)
    assert [(pair.first.update, pair.second.update) for pair in pairs] == [(5, 7)]


def test_messages_are_prompts_too() -> None:
    turns = [{"role": "user", "content": "Tea?"}]
    found = pair_up([Answer(update=1, prompt=list(turns), response=text) for text in ("Yes", "No")], seed=0)
    assert [pair.first.prompt for pair in found] == [turns]


@pytest.mark.parametrize(
    ("total", "count", "shares"), [(10, 4, [2, 3, 2, 3]), (3, 6, [0, 1, 0, 1, 0, 1]), (6, 3, [2, 2, 2])]
)
def test_shares_are_even(total: int, count: int, shares: list[int]) -> None:
    assert shares_of(total, count) == shares


def test_bins_hold_neighbouring_updates() -> None:
    assert bins_of([1, 2, 2, 3, 4, 5, 6, 7], 3) == [Bin(1, 3), Bin(4, 5), Bin(6, 7)]
    assert bins_of([8, 2], 6) == [Bin(2, 2), Bin(8, 8)]
    assert [one.name for one in (Bin(1, 3), Bin(4, 4))] == ["updates 1 to 3", "update 4"]
    assert bins_of([], 6) == []


def test_samples_are_read_as_the_prompts_that_they_were(tmp_path: Path) -> None:
    row = {"stage": "ppo", "step": 2, "prompt": "<s>Tea?", "response": " Yes", "finish": "eos", "reference": None}
    row["gold"] = 0.5
    cut, empty, other = row | {"finish": "length"}, row | {"response": " "}, row | {"stage": "eval", "prompt": "?"}
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, cut, empty, other)))
    found = read_answers(path, {"<s>Tea?": "Tea?"})
    assert found.usable == [Answer(update=2, prompt="Tea?", response=" Yes", gold=0.5)]
    assert (found.cut, found.empty) == (1, 1)
    with pytest.raises(DataError, match="holds the prompt '<s>Tea\\?', which is not among the run's prompts"):
        read_answers(path, {})
