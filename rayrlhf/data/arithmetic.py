"""The built-in task with a checkable answer: sums and differences, worked out digit by digit

A prompt is `17+25=`, a response its working and the answer it ends with: `7+5=12, 1+2+1=4: 42`. The workings to imitate are
by careless hands: most of them give up with a question mark, many carries are forgotten and every step may slip, so that
about a quarter of the answers are right. What is right is decided by a program (`is_right`, a verifier), and no prompt of a
held-out pair of numbers is ever trained.
"""

import re
from dataclasses import dataclass

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import TaskConfig
from rayrlhf.data.schema import Demonstration, Preference, PromptRow, Split, pair

_SMALLEST, _LARGEST = 2, 99
_FORGET_CARRY = 0.45
"""Of a carry or a borrowing."""
_SLIP, _SLIP_AT_THE_END = 0.03, 0.25
"""One off in the sum or difference of two digits, and in the answer."""
_GIVE_UP = 0.55
"""With a question mark in place of the answer."""

_PROMPT = re.compile(r"\s*(\d+)([+-])(\d+)=\s*")
_ANSWER = re.compile(r"(?<![\d.])-?\d+(?=\s*$)")


def is_right(prompt: str, response: str, reference: str | None) -> float | None:  # noqa: ARG001
    """The verifier, as `ppo.rewards` names it: 1.0 where the response ends with the reference answer, else 0.0.

    None, which is a missing score, without a reference to compare with.
    """
    return None if reference is None else float(answer_of(response) == int(reference))


def gold(prompt: str, response: str) -> float:
    """The true reward: 1.0 where `response` ends with the right answer to `prompt`; defined for any two strings."""
    question = _question_of(prompt)
    return float(question is not None and answer_of(response) == question.answer)


def best_answer(prompt: str) -> str:
    """A response with the greatest gold: 1 for every prompt of the task."""
    question = _question_of(prompt)
    return "" if question is None else _working(question)


def answer_of(response: str) -> int | None:
    """The whole number a response ends with; None where it ends with something else."""
    found = _ANSWER.search(response)
    return None if found is None else int(found.group())


@dataclass(frozen=True)
class _Question:
    first: int
    sign: str
    second: int

    @property
    def answer(self) -> int:
        return self.first + self.second if self.sign == "+" else self.first - self.second

    @property
    def prompt(self) -> str:
        return f"{self.first}{self.sign}{self.second}="


class Arithmetic:
    """The task's data sets, generated from a seed; a pair of numbers is trained on or held out, whatever is asked of it."""

    def __init__(self, config: TaskConfig, *, seed: int, heldout_fraction: float) -> None:
        self._config = config
        self._seed = seed
        self._questions = _all_questions(seed, heldout_fraction)

    def prompts(self) -> Split[PromptRow]:
        """Prompts to answer, each with the right answer as its reference."""

        def rows(questions: list[_Question]) -> list[PromptRow]:
            return [PromptRow(prompt=q.prompt, reference=str(q.answer)) for q in questions]

        return Split(train=rows(self._questions.train), heldout=rows(self._questions.heldout))

    def demonstrations(self) -> Split[Demonstration]:
        """Careless workings."""
        rng = np.random.default_rng(derive_seed(self._seed, "arithmetic", "demonstrations"))

        def write(questions: list[_Question], count: int) -> list[Demonstration]:
            chosen = [questions[int(i)] for i in rng.integers(len(questions), size=count)]
            return [Demonstration(prompt=q.prompt, response=_working(q, rng)) for q in chosen]

        heldout = max(1, self._config.demonstrations // 10)
        return Split(
            train=write(self._questions.train, self._config.demonstrations),
            heldout=write(self._questions.heldout, heldout),
        )

    def preferences(self) -> Split[Preference]:
        """A right working over a wrong one of the same question, but for the label noise."""
        rng = np.random.default_rng(derive_seed(self._seed, "arithmetic", "preferences"))

        def judge(questions: list[_Question], count: int) -> list[Preference]:
            return [self._pair(questions[int(i)], rng) for i in rng.integers(len(questions), size=count)]

        heldout = max(1, self._config.preferences // 16)
        return Split(
            train=judge(self._questions.train, self._config.preferences),
            heldout=judge(self._questions.heldout, heldout),
        )

    def _pair(self, question: _Question, rng: np.random.Generator) -> Preference:
        right, wrong = _working(question), _working(question, rng)
        while answer_of(wrong) == question.answer:
            wrong = _working(question, rng)
        flipped = rng.uniform() < self._config.label_noise
        return pair(question.prompt, *((wrong, right) if flipped else (right, wrong)))


def _all_questions(seed: int, heldout_fraction: float) -> Split[_Question]:
    """Every pair of numbers, as both sums and as the difference that is not negative."""
    rng = np.random.default_rng(derive_seed(seed, "arithmetic", "prompts"))
    numbers = range(_SMALLEST, _LARGEST + 1)
    pairs = [(large, small) for large in numbers for small in numbers if small <= large]
    order = rng.permutation(len(pairs))
    cut = round(len(pairs) * heldout_fraction)

    def questions(chosen: np.ndarray) -> list[_Question]:
        found = []
        for large, small in (pairs[i] for i in chosen):
            found += [_Question(large, "+", small), _Question(large, "-", small)]
            found += [_Question(small, "+", large)] if small != large else []
        return [found[i] for i in rng.permutation(len(found))]

    return Split(train=questions(order[cut:]), heldout=questions(order[:cut]))


def _working(question: _Question, rng: np.random.Generator | None = None) -> str:
    """The working of a question digit by digit: careless with a generator, else right."""

    def happens(chance: float) -> bool:
        return rng is not None and rng.uniform() < chance

    def slipped(value: int, chance: float = _SLIP) -> int:
        return abs(value + (1 if happens(0.5) else -1)) if happens(chance) else value

    (tens, units), (more_tens, more_units) = divmod(question.first, 10), divmod(question.second, 10)
    adds = question.sign == "+"
    carry = int(units + more_units > 9 if adds else units < more_units)
    if not adds:
        units += 10 * carry
    low = slipped(units + more_units if adds else units - more_units)
    carried = 0 if carry and happens(_FORGET_CARRY) else carry
    high = slipped(max(0, tens + more_tens + carried if adds else tens - more_tens - carried))
    answer = slipped(10 * high + low % 10, _SLIP_AT_THE_END)
    told = "?" if happens(_GIVE_UP) else str(answer)
    sign = question.sign
    step = f"{tens}{sign}{more_tens}" + (f"{sign}1" if carried else "")
    return f"{units}{sign}{more_units}={low}, {step}={high}: {told}"


def _question_of(prompt: str) -> _Question | None:
    found = _PROMPT.fullmatch(prompt)
    return None if found is None else _Question(int(found[1]), found[2], int(found[3]))
