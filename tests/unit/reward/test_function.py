"""Reward functions in their own process: every number, every way to fail, each named with its sample."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.errors import ConfigError
from rayrlhf.reward.function import FunctionTerm
from rayrlhf.reward.real_number import finite_number
from rayrlhf.reward.terms import ScoreRequest, TermScore

NUMBERS = """
import numpy as np
import torch
from decimal import Decimal
from fractions import Fraction

VALUES = {
    "float32": np.float32(0.5), "float64": np.float64(0.5), "int64": np.int64(2), "array": np.array(0.5),
    "true": True, "numpy true": np.bool_(True), "fraction": Fraction(1, 2), "decimal": Decimal("0.5"),
    "tensor": torch.tensor(0.5, requires_grad=True), "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
    "one element": torch.tensor([0.5]),
    "none": None, "nan": float("nan"), "inf": np.float32("inf"), "decimal nan": Decimal("NaN"), "huge": 10**400,
    "very huge": 10**5000, "complex": 1j, "text": "0.5", "two": torch.ones(2), "list": [0.5],
}

def give(prompt, response, reference):
    return VALUES[response]
"""
WILD = """
import asyncio, ctypes, os, re, signal, sys, threading

def run(prompt, response, reference):
    if response == "exit": sys.exit(3)
    if response == "exits": os._exit(0)
    if response == "crash": ctypes.string_at(0)
    if response == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if response == "interrupt": raise KeyboardInterrupt
    if response == "loop":
        while True: pass
    if response == "regex": re.match(r"(a+)+$", "a" * 60 + "b")
    print("people print", flush=True)
    return len(response)

async def later(prompt, response, reference):
    if response == "loop":
        while True: pass
    if response == "exit": sys.exit()
    if response == "crash": ctypes.string_at(0)
    await asyncio.sleep(60.0 if response == "sleep" else 0.5)
    return len(response)

def process(prompt, response, reference):
    return os.getpid()

def see(prompt, response, reference):
    return float((prompt, response, reference) == ("user: Bread?", "No.", "Yes."))

if os.environ.get("WILD") == "exit": sys.exit(7)
if os.environ.get("WILD") == "loop":
    while True: pass
if os.environ.get("WILD") == "broken": raise RuntimeError("half a module")
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "number_rewards.py").write_text(NUMBERS)
    (tmp_path / "wild_rewards.py").write_text(WILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def asked(responses: list[str]) -> list[ScoreRequest]:
    ids = np.zeros(1, dtype=np.int32)
    return [
        ScoreRequest(name=f"ppo-0-{i}-0", prompt=f"Guest {i}?", response=response, token_ids=ids, finished=True)
        for i, response in enumerate(responses)
    ]


def scores(target: str, responses: list[str], *, timeout: float = 20.0) -> list[TermScore]:
    return FunctionTerm(target, timeout=timeout).score(asked(responses))


def test_any_real_number_is_a_score_and_anything_else_is_named_with_its_sample() -> None:
    taken = {
        **dict.fromkeys(
            ["float32", "float64", "array", "fraction", "decimal", "tensor", "bfloat16", "one element"], 0.5
        ),
        **{"int64": 2.0, "true": 1.0, "numpy true": 1.0},
    }
    refused = {
        "none": "gave no score",
        "nan": "gave nan, not a finite number",
        "inf": "gave np.float32(inf), not a finite number",
        "decimal nan": "gave Decimal('NaN'), not a finite number",
        "huge": "too large for a score",
        "very huge": "gave a value of type int, too large for a score",
        "complex": "gave 1j, not a number",
        "text": "gave '0.5', not a number",
        "two": "gave tensor([1., 1.]), not a number",
        "list": "gave [0.5], not a number",
    }
    found = scores("number_rewards:give", [*taken, *refused])
    assert {name: score.value for name, score in zip(taken, found, strict=False)} == taken
    for number, (told, score) in enumerate(zip(refused.values(), found[len(taken) :], strict=True), start=len(taken)):
        assert score.value is None
        assert score.reason.startswith("number_rewards:give ")
        assert told in score.reason
        assert score.reason.endswith(f"for sample ppo-0-{number}-0 (prompt 'Guest {number}?')")


def test_what_ends_a_process_ends_the_function_s_and_is_named_as_its_own() -> None:
    responses = ["one", "exit", "exits", "two", "crash", "killed", "three", "interrupt", "four"]
    found = scores("wild_rewards:run", responses)
    assert [score.value for score in found] == [3.0, None, None, 3.0, None, None, 5.0, None, 4.0]
    reasons = [score.reason for score in found if score.value is None]
    expected = {
        1: "called sys.exit(3)",
        2: "ended its process with status 0",
        4: "ended its process by SIGSEGV (a segmentation fault) in wild_rewards.py, line 7",
        5: "ended its process by SIGKILL",
        7: "raised KeyboardInterrupt",
    }
    for reason, (number, told) in zip(reasons, expected.items(), strict=True):
        assert reason.startswith(f"wild_rewards:run {told}")
        assert reason.endswith(f", for sample ppo-0-{number}-0 (prompt 'Guest {number}?')")


def test_a_call_that_does_not_end_is_ended_and_the_others_go_on() -> None:
    began = time.monotonic()
    found = scores("wild_rewards:run", ["one", "loop", "two", "regex", "three"], timeout=1.0)
    assert [score.value for score in found] == [3.0, None, 3.0, None, 5.0]
    assert found[1].reason == (
        "wild_rewards:run gave no answer within 1 s in wild_rewards.py, line 11, for sample ppo-0-1-0 (prompt 'Guest 1?')"
    )
    assert "gave no answer within 1 s in wild_rewards.py, line 12, for sample ppo-0-3-0" in found[3].reason
    assert time.monotonic() - began < 30.0


def test_a_function_that_only_crashes_is_not_asked_forever() -> None:
    term = FunctionTerm("wild_rewards:run", timeout=1.0)
    began = time.monotonic()
    found = term.score(asked(["loop"] * 100))
    assert time.monotonic() - began < 30.0
    assert {score.value for score in found} == {None}
    assert all(score.reason.startswith("wild_rewards:run gave no answer within 1 s") for score in found)
    assert "3 times in a row, for sample ppo-0-99-0" in found[-1].reason
    assert [score.value for score in term.score(asked(["one"]))] == [3.0]


def test_asynchronous_functions_run_together() -> None:
    began = time.monotonic()
    assert [score.value for score in scores("wild_rewards:later", ["four"] * 40)] == [4.0] * 40
    assert time.monotonic() - began < 10.0  # and not the 20 s of one after the other


def test_asynchronous_functions_fail_one_by_one() -> None:
    found = scores("wild_rewards:later", ["a", "sleep", "exit", "ab", "crash", "abc", "loop", "abcd"], timeout=2.0)
    assert [score.value for score in found] == [1.0, None, None, 2.0, None, 3.0, None, 4.0]
    told = [
        "gave no answer within 2 s",
        "called sys.exit()",
        "ended its process by SIGSEGV",
        "gave no answer within 2 s in",
    ]
    for number, start in zip((1, 2, 4, 6), told, strict=True):
        assert found[number].reason.startswith(f"wild_rewards:later {start}")
        assert f"for sample ppo-0-{number}-0 (" in found[number].reason


def test_one_process_stays_for_all_calls_and_none_is_left_behind() -> None:
    term = FunctionTerm("wild_rewards:process")
    (first,), (second,) = term.score(asked(["a"])), term.score(asked(["b"]))
    assert first.value == second.value != os.getpid()
    assert first.value is not None
    os.kill(int(first.value), signal.SIGKILL)
    (third,) = term.score(asked(["c"]))  # It was not the call that ended it.
    assert third.value is not None
    assert third.value != first.value
    del term
    with pytest.raises(ProcessLookupError):
        os.kill(int(third.value), 0)


def test_it_ends_with_a_parent_that_was_killed(modules: Path) -> None:
    (modules / "parent.py").write_text(
        "import sys, time; from rayrlhf.reward.function import FunctionTerm\n"
        "print(FunctionTerm('wild_rewards:run')._process._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(modules / "parent.py")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    own = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10.0
    while Path(f"/proc/{own}").exists() and "Z" not in Path(f"/proc/{own}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_prompt_response_and_reference_are_given() -> None:
    ids = np.zeros(1, dtype=np.int32)
    prompt = [{"role": "user", "content": "Bread?"}]
    request = ScoreRequest(name="s", prompt=prompt, response="No.", reference="Yes.", token_ids=ids, finished=True)
    assert FunctionTerm("wild_rewards:see").score([request])[0].value == 1.0
    assert FunctionTerm("wild_rewards:see").score([]) == []


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("exit", r"its module fails with SystemExit: 7\."),
        ("broken", r"its module fails with RuntimeError: half a module\."),
        ("loop", r"its module is not done within scoring\.start_timeout=2 s in wild_rewards\.py, line \d+\."),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error_that_says_why(
    how: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WILD", how)
    with pytest.raises(ConfigError, match=f"The reward function wild_rewards:run cannot be imported: {told}"):
        FunctionTerm("wild_rewards:run", start_timeout=2.0)
    monkeypatch.delenv("WILD")
    with pytest.raises(ConfigError, match=r"wild_rewards:signal is module, not a function"):
        FunctionTerm("wild_rewards:signal")


def test_numbers_out_of_json() -> None:
    assert finite_number(True) == 1.0
    assert finite_number(10**300) == 1e300
    for value in (10**400, math.inf, math.nan, "1", None, {}, [1.0]):
        with pytest.raises(ValueError, match=r"not a finite number|not a number|too large for a score"):
            finite_number(value)
