"""vLLM's messages, at the end of a sentence."""

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from rayrlhf.rollout.wording import reason_of


class Model(BaseModel):
    length: int

    @field_validator("length")
    @classmethod
    def _fits(cls, length: int) -> int:
        raise ValueError(f"a length of {length} does not fit. Take less.")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ValueError("No parameter 'score' in Qwen2. The others are: {...}."),
            "No parameter 'score' in Qwen2. The others are: {...}.",
        ),
        (RuntimeError("Size is too large:\n  3.5 of 2"), "Size is too large: 3.5 of 2."),
        (AssertionError(), "AssertionError."),
    ],
)
def test_the_whole_reason_is_kept(error: Exception, sentence: str) -> None:
    assert reason_of(error) == sentence


def test_a_validation_error_speaks_through_its_first_fault() -> None:
    with pytest.raises(ValidationError) as caught:
        Model(length=7)
    assert reason_of(caught.value) == "a length of 7 does not fit. Take less."


def test_a_missing_key_is_said_to_be_missing() -> None:
    assert reason_of(KeyError("layers.1.mlp.gate.bias")) == "It knows no 'layers.1.mlp.gate.bias'."
