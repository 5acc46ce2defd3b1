"""vLLM's messages, cut to a sentence."""

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from rayrlhf.rollout.wording import first_sentence


class Model(BaseModel):
    length: int

    @field_validator("length")
    @classmethod
    def _fits(cls, length: int) -> int:
        raise ValueError(f"a length of {length} does not fit. Take less.")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("No parameter 'score' in Qwen2. The others are: {...}."), "No parameter 'score' in Qwen2."),
        (RuntimeError("Size 3.5 is too large\nTraceback"), "Size 3.5 is too large."),
        (AssertionError(), "AssertionError."),
    ],
)
def test_the_first_sentence_is_kept(error: Exception, sentence: str) -> None:
    assert first_sentence(error) == sentence


def test_a_validation_error_speaks_through_its_first_fault() -> None:
    with pytest.raises(ValidationError) as caught:
        Model(length=7)
    assert first_sentence(caught.value) == "a length of 7 does not fit."


def test_a_missing_key_is_said_to_be_missing() -> None:
    assert first_sentence(KeyError("layers.1.mlp.gate.bias")) == "It knows no 'layers.1.mlp.gate.bias'."
