"""Reading one field of a raw row: what it must hold, and the sentence when it does not."""

import math
from collections.abc import Sequence
from typing import Any

from rayrlhf.data.schema import Message, PromptText


class UnusableRowError(ValueError):
    """Why one row cannot be used."""


def text(fields: dict[str, Any], key: str) -> str:
    """Text that is not blank."""
    if key not in fields:
        raise UnusableRowError(f"the field {key} is missing")
    value = fields[key]
    if not isinstance(value, str):
        raise UnusableRowError(f"the field {key} is {type(value).__name__}, not text")
    if not value.strip():
        raise UnusableRowError(f"the field {key} is empty")
    return value


def optional_text(fields: dict[str, Any], key: str) -> str | None:
    """Text, or None where the field is absent or null."""
    return None if fields.get(key) is None else text(fields, key)


def number(fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """A finite number; `default` where the field is absent or null."""
    value = fields.get(key)
    if value is None and default is not None:
        return default
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UnusableRowError(f"the field {key} is {value!r}, not a number") from None
    if not math.isfinite(found):
        raise UnusableRowError(f"the field {key} is {value!r}, not a finite number")
    return found


def flag(fields: dict[str, Any], key: str) -> bool:
    """True or false, also as 1 and 0."""
    value = fields.get(key)
    if str(value).lower() not in ("true", "false", "0", "1"):
        raise UnusableRowError(f"the label {key} is {value!r}, not 0 or 1")
    return str(value).lower() in ("true", "1")


def prompt(fields: dict[str, Any], key: str) -> PromptText:
    """A prompt, as text or as chat messages."""
    value = fields.get(key)
    return messages(value, key) if isinstance(value, list) else text(fields, key)


def response(fields: dict[str, Any], key: str) -> str:
    """A response, as text or as one assistant message."""
    return as_response(fields.get(key), key) if key in fields else text(fields, key)


def names(fields: dict[str, Any], key: str, known: Sequence[str]) -> tuple[str, ...] | None:
    """Those of the `known` names that a list, or a single name, holds; None where the field is absent or null."""
    value = fields.get(key)
    if value is None:
        return None
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UnusableRowError(f"the field {key} is {value!r}, not a name or a list of names")
    asked = [name.strip() for name in given]
    if not any(asked):
        raise UnusableRowError(f"the field {key} names nothing")
    unknown = next((name for name in asked if name not in known), None)
    if unknown is not None:
        raise UnusableRowError(f"the field {key} names {unknown!r}, which is none of {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def as_response(value: Any, key: str) -> str:
    """The response a value holds: text, or one assistant message."""
    if isinstance(value, list):
        found = messages(value, key)
        if len(found) != 1 or found[0]["role"] != "assistant":
            raise UnusableRowError(f"the field {key} must hold one assistant message beside an explicit prompt")
        return found[0]["content"]
    return text({key: value}, key)


def messages(value: list[Any], key: str) -> list[Message]:
    """Chat messages, at least one, each with role and content."""
    if not value:
        raise UnusableRowError(f"the field {key} holds no messages")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UnusableRowError(f"the field {key} holds a message without role and content")
        if not message["content"].strip():
            raise UnusableRowError(f"the field {key} holds an empty message")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def split_messages(value: Any, key: str) -> tuple[PromptText, str]:
    """Chat messages up to the last, and the last, which is the assistant's."""
    if not isinstance(value, list):
        raise UnusableRowError(f"the field {key} is {type(value).__name__}, not messages")
    found = messages(value, key)
    if len(found) < 2 or found[-1]["role"] != "assistant":
        raise UnusableRowError(f"the field {key} must end with an assistant message after a prompt")
    return found[:-1], found[-1]["content"]
