"""What vLLM says when it refuses, cut to what fits into a sentence of ours."""

import re

from pydantic import ValidationError


def first_sentence(error: Exception) -> str:
    """The first sentence of an error's message, with one full stop."""
    if isinstance(error, KeyError):
        return f"It knows no {error}."
    text = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else str(error)
    sentence = re.split(r"\.\s|\n", text.strip(), maxsplit=1)[0] or type(error).__name__
    return f"{sentence.rstrip('.')}."
