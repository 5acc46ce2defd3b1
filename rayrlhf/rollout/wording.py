"""What vLLM says when it refuses, as the end of a sentence of ours."""

from pydantic import ValidationError

from rayrlhf.errors import in_one_line

VLLM_ERRORS = (ValueError, OSError, RuntimeError, AttributeError, KeyError, TypeError, AssertionError)
"""What vLLM raises; the last four where it reads an architecture otherwise than transformers wrote it."""


def reason_of(error: Exception) -> str:
    """The whole reason of an error, in one line, with one full stop; of a pydantic report its first finding."""
    if isinstance(error, KeyError):
        return f"It knows no {error}."
    if isinstance(error, ValidationError):
        error = ValueError(error.errors()[0]["msg"].removeprefix("Value error, "))
    return f"{in_one_line(error)}."
