"""Pairs of one prompt become a ranking exactly where they imply one."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrlhf.data.pair_merging import merge_pairs
from rayrlhf.data.schema import Preference, pair


def pairs(*wins: str, prompt: str = "p") -> list[Preference]:
    return [pair(prompt, win[0], win[1]) for win in wins]


def groups(record: Preference) -> list[str]:
    return ["".join(sorted(record.responses[i].text for i in group)) for group in record.ranking]


@pytest.mark.parametrize(
    ("wins", "ranking"),
    [
        (["ar", "br", "rc", "rd"], ["ab", "r", "cd"]),
        (["ar", "br"], ["ab", "r"]),
        (["ab", "bc"], ["a", "b", "c"]),
        (["ac", "bc", "ad", "bd"], ["ab", "cd"]),
        (["ab", "ab"], ["a", "b"]),
    ],
)
def test_a_ranking_is_made_of_pairs_that_imply_it(wins: list[str], ranking: list[str]) -> None:
    (merged,) = merge_pairs(pairs(*wins))
    assert groups(merged) == ranking


@pytest.mark.parametrize("wins", [["ab", "cd"], ["ab", "ac", "db"], ["ab", "ba"], ["ab", "bc", "ca"]])
def test_pairs_that_leave_something_open_or_contradict_each_other_stay(wins: list[str]) -> None:
    assert merge_pairs(pairs(*wins)) == pairs(*wins)


def test_pairs_with_margins_stay() -> None:
    records = [pair("p", "a", "r", margin=2.0), pair("p", "r", "b")]
    assert merge_pairs(records) == records


def test_prompts_stay_apart_in_order_and_carry_means() -> None:
    first, other = pair("p", "a", "r", probability=0.8, weight=2.0), pair("q", "a", "r")
    second, rated = pair("p", "r", "b", probability=0.6, weight=1.0), Preference(prompt="p", responses=())
    merged = merge_pairs([first, other, second, rated])
    assert [record.prompt for record in merged] == ["p", "q", "p"]
    assert groups(merged[0]) == ["a", "r", "b"]
    assert merged[0].probability == pytest.approx(0.7)
    assert merged[0].weight == pytest.approx(1.5)
    assert merged[1:] == [other, rated]


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda win: win[0] != win[1]), min_size=2))
def test_what_a_merged_ranking_says_is_the_transitive_closure_of_its_pairs(wins: set[tuple[int, int]]) -> None:
    records = [pair("p", str(better), str(worse)) for better, worse in sorted(wins)]
    merged = merge_pairs(records)
    if len(merged) == 1:
        (record,) = merged
        said = {(record.responses[i].text, record.responses[j].text) for i, j in record.strict_pairs()}
        assert said == {(str(better), str(worse)) for better, worse in closure(wins)}
    else:
        assert merged == records


def closure(wins: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Warshall 1962."""
    found = set(wins)
    for middle in range(6):
        found |= {(a, c) for a, b in found if b == middle for b2, c in found if b2 == middle}
    return found
