"""Labels of the policy's own pairs, and how many are asked for."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_lab import JudgeServer, settings, sigmoid

from rayrlhf.config import RunConfig, parse_config
from rayrlhf.data.on_policy import Answer, AnswerPair
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.reward.labels import GoldLabels, draw_labelled, labeller_of

JUDGES = """
def longer(prompt, response, reference):
    if "broken" in response:
        raise ValueError("no judge today")
    return float(len(response))
"""


def config(*rewards: dict[str, Any]) -> RunConfig:
    tree = {"name": "labels", "model": {"init": {"model_type": "qwen2"}}, "data": {"task": {}}}
    return parse_config(tree | ({"ppo": {"rewards": list(rewards)}} if rewards else {}))


def of_update(update: int, first: float | None, second: float | None, *, number: int = 0) -> AnswerPair:
    a, b = (
        Answer(update=update, prompt=f"p{number}", response=f"{update} {number} {side}", gold=gold)
        for side, gold in (("a", first), ("b", second))
    )
    return AnswerPair(first=a, second=b)


def test_gold_orders_ties_and_is_missed() -> None:
    pairs = [of_update(1, 1.0, 0.0), of_update(1, 0.2, 0.8), of_update(1, 0.5, 0.5), of_update(1, None, 0.5)]
    assert GoldLabels().label(pairs) == [1.0, 0.0, 0.5, "a sample holds no gold"]


def test_every_update_gives_its_share_and_ties_are_made_up_for() -> None:
    """Of each update the 10 pairs that are no ties suffice for 4, however many ties come before them."""
    pairs = [of_update(update, 1.0, float(n % 2), number=n) for update in range(1, 7) for n in range(20)]
    found = draw_labelled(pairs, GoldLabels(), 24, seed=0)
    assert Counter(row.subset for row in found.preferences) == {f"update {update}": 4 for update in range(1, 7)}
    assert 0 < found.ties <= 60
    assert all(row.chosen.endswith("a") for row in found.preferences)
    assert draw_labelled(pairs, GoldLabels(), 24, seed=0).preferences == found.preferences


def test_an_update_with_too_few_gives_what_it_has() -> None:
    pairs = [of_update(1, 0.0, 1.0), *(of_update(2, 0.0, 1.0, number=n) for n in range(9))]
    found = draw_labelled(pairs, GoldLabels(), 10, seed=0)
    assert Counter(row.subset for row in found.preferences) == {"update 1": 1, "update 2": 5}
    assert {row.probability for row in found.preferences} == {1.0}


class _Doubtful:
    name = "doubtful"

    def label(self, pairs: Any) -> list[float | str]:
        return [0.3 if pair.update == 1 else "it is out" for pair in pairs]


def test_a_probability_is_kept_and_a_missing_label_is_told() -> None:
    pairs = [of_update(1, 0.0, 1.0), of_update(2, 0.0, 1.0)]
    found = draw_labelled(pairs, _Doubtful(), 2, seed=0, allowed=0.5)
    (row,) = found.preferences
    assert (row.chosen, row.probability) == ("1 0 b", pytest.approx(0.7))
    with pytest.raises(DataError, match=r"1 of 2 pairs have no label by doubtful, .* the first: it is out"):
        draw_labelled(pairs, _Doubtful(), 2, seed=0, allowed=0.4)


def test_a_function_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_judges.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    texts = [("long one", "short"), ("short", "long one"), ("same", "size"), ("broken", "fine")]
    pairs = [
        AnswerPair(first=Answer(update=1, prompt="p", response=a), second=Answer(update=1, prompt="p", response=b))
        for a, b in texts
    ]
    labeller = labeller_of("own_judges:longer", [], config())
    *labels, reason = labeller.label(pairs)
    assert labels == [1.0, 0.0, 0.5]
    assert "no judge today" in str(reason)


def test_a_judge_labels_in_both_orders() -> None:
    """It prefers the longer by a character with odds of e, whichever stands first; a question it refuses has no label."""
    server = JudgeServer(bias=2.0)
    server.broken_on = "broken"
    judge = {**settings(server).model_dump(), "retries": 0}
    texts = [("abc", "ab"), ("ab", "abc"), ("ab", "cd"), ("broken", "fine")]
    pairs = [
        AnswerPair(first=Answer(update=1, prompt="p", response=a), second=Answer(update=1, prompt="p", response=b))
        for a, b in texts
    ]
    labeller = labeller_of("judge", [], config(judge))
    *labels, reason = labeller.label(pairs)
    ahead = (sigmoid(1.0 + 2.0) + sigmoid(1.0 - 2.0)) / 2
    assert labels == [pytest.approx(ahead), pytest.approx(1 - ahead), pytest.approx(0.5)]
    assert "400" in str(reason)
    assert labeller_of(None, [], config(judge)).name == labeller.name


def test_a_judge_in_scoring_workers_is_to_be_served() -> None:
    judge = {"kind": "judge", "path": "somewhere", "principles": "Be kind."}
    with pytest.raises(ConfigError, match=r"serve it \(vllm serve somewhere\) and give ppo.rewards="):
        labeller_of("judge", [], config(judge))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (None, "hold no gold, no judge is among ppo.rewards, and no --label was given. Give --label gold"),
        ("gold", "--label gold: the samples of this run hold no gold. Give --label gold, where"),
        ("judge", "--label judge: there are 0 judges among ppo.rewards, not one. Give --label gold"),
        ("jugde", "--label jugde is nobody. Give --label gold"),
        ("nowhere:at_all", "importing nowhere raised ModuleNotFoundError"),
    ],
)
def test_a_label_that_cannot_be_had(label: str | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        labeller_of(label, [Answer(update=1, prompt="p", response="r")], config())


def test_gold_is_taken_where_it_is() -> None:
    assert labeller_of(None, [Answer(update=1, prompt="p", response="r", gold=0.0)], config()).name == "gold"
