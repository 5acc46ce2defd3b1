"""A number that other people's code or servers gave for a score."""

import math
import numbers
from decimal import Decimal
from typing import Any

_SHOWN = 80


def finite_number(value: Any) -> float:
    """Any real number as a float, also NumPy's and a tensor of one element; ValueError that says what was given instead."""
    shown, real = show(value), _real(value)
    if real is None:
        raise ValueError(f"{shown}, not a number")
    try:
        number = float(real)
    except OverflowError:
        raise ValueError(f"{shown}, too large for a score") from None
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{shown}, not a finite number")
    return number


def show(value: Any) -> str:
    """A value for a message; it may be anything."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - somebody else's code, or an integer of thousands of digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _real(value: Any) -> Any:
    if isinstance(value, numbers.Real | Decimal):
        return value
    try:
        inner = value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return inner if isinstance(inner, numbers.Real) else None
