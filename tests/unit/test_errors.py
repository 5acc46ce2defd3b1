"""The reason that a library gives is told whole, in one line."""

import pytest
from ray.exceptions import RayTaskError

from rayrlhf.actors.calls import translate
from rayrlhf.errors import in_one_line


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("too large.", "too large"),
        ("GenerationConfig is invalid:\n- `temperature`: 0.9 is set\n\n- `top_p`: 0.6 is set.",
         "GenerationConfig is invalid: - `temperature`: 0.9 is set - `top_p`: 0.6 is set"),
        ('ray::Worker.__init__() (pid=1)\n  File "a.py", line 3, in f\n    x()\nValueError: no such key.',
         "ray::Worker.__init__() (pid=1) ValueError: no such key"),
        ("", "ValueError"),
    ],
)  # fmt: skip
def test_nothing_of_a_reason_is_cut(message: str, told: str) -> None:
    assert in_one_line(ValueError(message)) == told


def test_a_very_long_reason_keeps_its_beginning() -> None:
    told = in_one_line(ValueError("word " * 1000))
    assert told.startswith("word word")
    assert told.endswith("word ...")
    assert len(told) <= 604


def test_a_failed_call_keeps_what_follows_the_colon() -> None:
    error = RayTaskError("export", "trace", ValueError("it is invalid:\n- top_p is set"))
    assert str(translate(error, what="the export")) == "the export failed: ValueError: it is invalid: - top_p is set."
