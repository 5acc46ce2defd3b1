"""Reading one field of a row: what it must hold, and the sentence when it does not."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


class UnusableRowError(ValueError):
    """Why one row cannot be used."""


class Row(dict[str, Any]):
    """The columns of a row that hold something, and an account of how it was read.

    A null, and the NaN that data frames write for it, is no value: its column is absent.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__({key: value for key, value in fields.items() if not _is_nothing(value)})
        self.read: set[str] = set()
        """The columns whose values were used."""
        self.form = ""
        """What the row was recognised as."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.read.add(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict; a column that is there counts as read."""
        return self[key] if key in self else default  # noqa: SIM401 - not itself

    def peek(self, key: str) -> Any:
        """A column's value, None where it is absent; it does not count as read."""
        return super().__getitem__(key) if key in self else None

    def holds(self, key: str) -> bool:
        """Whether a column is there and not blank; it does not count as read."""
        return key in self and not is_blank(self.peek(key))

    def kind(self, key: str) -> type:
        """The type of a column's value, which does not count as read; NoneType where it is absent."""
        return type(self.peek(key))


def is_blank(value: Any) -> bool:
    """Whether a value is text of nothing but space, as an empty cell of a table is."""
    return isinstance(value, str) and not value.strip()


def text(fields: Mapping[str, Any], key: str) -> str:
    """Text that is not blank."""
    if key not in fields:
        raise UnusableRowError(f"the field {key} is missing")
    return as_text(fields[key], key)


def as_text(value: Any, key: str) -> str:
    """The text that a value is."""
    if not isinstance(value, str):
        raise UnusableRowError(f"the field {key} is {type(value).__name__}, not text")
    if not value.strip():
        raise UnusableRowError(f"the field {key} is empty")
    lone = _LONE_SURROGATE.search(value)
    if lone is not None:
        raise UnusableRowError(f"the field {key} holds half a character (U+{ord(lone.group()):04X})")
    return value


def optional_number(row: Row, key: str) -> float | None:
    """A finite number; None where the column is absent or an empty cell."""
    return number(row, key) if row.holds(key) else None


def number(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A finite number; `default` where the field is absent, null or an empty cell."""
    value = fields.get(key)
    if default is not None and (_is_nothing(value) or is_blank(value)):
        return default
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UnusableRowError(f"the field {key} is {shown(value)}, not a number") from None
    if not math.isfinite(found):
        raise UnusableRowError(f"the field {key} is {value!r}, not a finite number")
    return found


def flag(fields: Mapping[str, Any], key: str) -> bool:
    """True or false, also as 1 and 0 and as data frames write these."""
    value = str(fields.get(key)).strip().lower()
    if value not in (*_TRUE, *_FALSE):
        raise UnusableRowError(f"the label {key} is {shown(fields.get(key))}, not 0 or 1")
    return value in _TRUE


def names(fields: Mapping[str, Any], key: str, known: Sequence[str]) -> tuple[str, ...] | None:
    """Those of the `known` names that a list, or a single name, holds; None where the field is absent or null."""
    value = fields.get(key)
    if value is None:
        return None
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UnusableRowError(f"the field {key} is {shown(value)}, not a name or a list of names")
    asked = [name.strip() for name in given]
    if not any(asked):
        raise UnusableRowError(f"the field {key} names nothing")
    unknown = next((name for name in asked if name not in known), None)
    if unknown is not None:
        raise UnusableRowError(f"the field {key} names {unknown!r}, which is none of {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def shown(value: Any) -> str:
    """A value in a sentence."""
    written = repr(value)
    return written if len(written) <= 80 else written[:77] + "..."


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
