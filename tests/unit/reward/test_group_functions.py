"""Functions of a whole group, and asynchronous ones with their own limits, in real processes of their own."""

import time
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.reward.function import FunctionTerm
from rayrlhf.reward.terms import ScoreRequest, TermScore

GROUPED = """
import asyncio, collections, json, os, pathlib
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent

def ranks(prompt, responses, reference):
    with open(HERE / "calls", "a") as file:
        print(json.dumps([prompt, responses, reference]), file=file)
    order = sorted(responses, key=len)
    return [order.index(response) for response in responses]

GIVEN = {
    "tuple": (1, 2, 3), "array": np.array([1.0, 2.0, 3.0]), "tensor": torch.tensor([1, 2, 3], dtype=torch.bfloat16),
    "numbers": [np.float32(1), True, torch.tensor(3.0)], "some": [1.0, None, float("nan")], "all none": [None] * 3,
    "texts": ["1", [2.0], 3], "short": [1.0, 2.0], "long": [1.0] * 4, "empty": [], "number": 0.5, "none": None,
    "text": "123", "mapping": {"a": 1.0, "b": 2.0, "c": 3.0}, "scalar": np.float64(3.0), "generator": iter([1, 2, 3]),
}

def give(prompt, responses, reference):
    return GIVEN[prompt]

def fails(prompt, responses, reference):
    if prompt == "raises": raise ValueError("no judge")
    if prompt == "dies": os._exit(1)
    if prompt == "hangs":
        while True: pass
    if prompt == "eats":
        responses.clear()
        return [1.0] * 3
    return [float(len(response)) for response in responses]

async def compare(prompt, responses, reference):
    if prompt == "hangs": await asyncio.sleep(3600.0)
    if prompt == "raises": raise ValueError("no judge")
    if prompt == "short": return [1.0]
    await asyncio.sleep(0.5)
    return [float(len(response)) for response in responses]

RUNNING = collections.Counter()

async def crowded(prompt, response, reference):
    RUNNING["now"] += 1
    RUNNING["most"] = max(RUNNING["most"], RUNNING["now"])
    await asyncio.sleep(0.05)
    RUNNING["now"] -= 1
    return RUNNING["most"]
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "group_rewards.py").write_text(GROUPED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def asked(*groups: tuple[str, list[str]]) -> list[ScoreRequest]:
    ids = np.zeros(1, dtype=np.int32)
    return [
        ScoreRequest(
            name=f"ppo-0-{number}-{k}",
            prompt=prompt,
            response=response,
            token_ids=ids,
            finished=True,
            reference=f"ref {prompt}",
            group=number,
        )
        for number, (prompt, responses) in enumerate(groups)
        for k, response in enumerate(responses)
    ]


def values(scores: list[TermScore]) -> list[float | None]:
    return [score.value for score in scores]


def test_a_group_is_one_call_with_its_responses_in_order_wherever_they_stand(modules: Path) -> None:
    requests = asked(("Bread?", ["no", "y", "maybe"]), ("Ale?", ["aye"]), ("Bread?", ["four", "two"]))
    mixed = [requests[place] for place in (3, 0, 4, 1, 5, 2)]
    found = FunctionTerm("group_rewards:ranks", per="group").score(mixed)
    assert values(found) == [0.0, 1.0, 1.0, 0.0, 0.0, 2.0]
    calls = (modules / "calls").read_text().splitlines()
    assert calls == [
        '["Ale?", ["aye"], "ref Ale?"]',
        '["Bread?", ["no", "y", "maybe"], "ref Bread?"]',
        '["Bread?", ["four", "two"], "ref Bread?"]',
    ]
    assert FunctionTerm("group_rewards:ranks", per="group").score([]) == []


def test_a_group_s_answer_is_a_list_of_as_many_numbers_or_none() -> None:
    taken = {"tuple": [1.0, 2.0, 3.0], "array": [1.0, 2.0, 3.0], "tensor": [1.0, 2.0, 3.0], "numbers": [1.0, 1.0, 3.0]}
    partly = {
        "some": [1.0, "gave no score", "gave nan, not a finite number"],
        "all none": ["gave no score"] * 3,
        "texts": ["gave '1', not a number", "gave [2.0], not a number", 3.0],
    }
    refused = {
        "short": "gave 2 scores for 3 responses",
        "long": "gave 4 scores for 3 responses",
        "empty": "gave 0 scores for 3 responses",
        "number": "gave 0.5, not a list of 3 scores",
        "none": "gave None, not a list of 3 scores",
        "text": "gave '123', not a list of 3 scores",
        "mapping": "gave {'a': 1.0, 'b': 2.0, 'c': 3.0}, not a list of 3 scores",
        "scalar": "gave np.float64(3.0), not a list of 3 scores",
        "generator": "not a list of 3 scores",
    }
    wanted: dict[str, list[float | str]] = {**taken, **partly, **{name: [told] * 3 for name, told in refused.items()}}
    requests = asked(*((name, ["a", "b", "c"]) for name in wanted))
    found = FunctionTerm("group_rewards:give", per="group").score(requests)
    for request, score, answer in zip(requests, found, [a for own in wanted.values() for a in own], strict=True):
        if isinstance(answer, float):
            assert score == TermScore(value=answer)
        else:
            assert score.value is None
            assert score.reason.startswith("group_rewards:give gave ")
            assert answer in score.reason
            assert score.reason.endswith(f", for sample {request.name} (prompt {request.prompt!r})")


def test_a_call_that_fails_takes_its_group_and_no_other() -> None:
    prompts = ["one", "raises", "dies", "two", "hangs", "eats", "three"]
    requests = asked(*((prompt, ["a", "ab", "abc"]) for prompt in prompts))
    found = FunctionTerm("group_rewards:fails", per="group", timeout=1.0).score(requests)
    own, ones = [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]
    assert [values(found[start : start + 3]) for start in range(0, 21, 3)] == [
        own,
        [None] * 3,
        [None] * 3,
        own,
        [None] * 3,
        ones,
        own,
    ]
    told = [
        "raised ValueError: no judge,",
        "ended its process with status 1,",
        "gave no answer within 1 s in group_rewards.py",
    ]
    for place, start in zip((3, 6, 12), told, strict=True):
        for k in range(3):
            assert found[place + k].reason.startswith(f"group_rewards:fails {start}")
            assert f"for sample ppo-0-{place // 3}-{k} (prompt {prompts[place // 3]!r})" in found[place + k].reason


def test_asynchronous_group_functions_run_together_each_with_its_own_deadline() -> None:
    prompts = ["p"] * 20 + ["hangs", "raises", "short"] + ["p"] * 20
    requests = asked(*((prompt, ["a", "ab"]) for prompt in prompts))
    term = FunctionTerm("group_rewards:compare", per="group", timeout=2.0)
    began = time.monotonic()
    found = term.score(requests)
    assert time.monotonic() - began < 10.0  # the others do not wait for the one, nor for each other: 20 s one by one
    pairs = [values(found[start : start + 2]) for start in range(0, len(found), 2)]
    assert pairs == [[1.0, 2.0]] * 20 + [[None, None]] * 3 + [[1.0, 2.0]] * 20
    for place, told in (
        (40, "gave no answer within 2 s"),
        (42, "raised ValueError: no judge"),
        (44, "gave 1 scores for 2"),
    ):
        for score in found[place : place + 2]:
            assert score.reason.startswith(f"group_rewards:compare {told}")
            assert f"(prompt {prompts[place // 2]!r})" in score.reason
    began = time.monotonic()
    assert values(term.score(requests[:2])) == [1.0, 2.0]  # the process goes on
    assert time.monotonic() - began < 2.0


def test_concurrency_bounds_what_is_awaited_together() -> None:
    requests = asked(*((f"p{i}", ["a"]) for i in range(20)))
    for bound in (1, 5, 64):
        found = FunctionTerm("group_rewards:crowded", concurrency=bound).score(requests)
        assert max(score.value or 0.0 for score in found) == min(bound, 20)
