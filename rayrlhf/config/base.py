"""The base of every configuration node."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Node(BaseModel):
    """A frozen mapping of known keys: unknown keys and silent type conversions are errors.

    A section that is given in part keeps, for all else, what the default of its own place says, not what its class
    says elsewhere; a section of which nothing is given (`optim:` with nothing after it) keeps all of it.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _sections_over_their_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        defaults = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}
        return {name: _over(value, defaults.get(name)) for name, value in given.items()}


def _over(given: Any, default: Any) -> Any:
    """`given` laid over a section's default instance, key by key; anything but a section stays as it is.

    Only where the instance differs from its class is it laid under: the rest is the class's to decide, which may depend
    on what else is given.
    """
    if not isinstance(default, Node) or not (given is None or isinstance(given, Mapping)):
        return given
    own = ((name, getattr(default, name), field) for name, field in type(default).model_fields.items())
    under = {name: value for name, value, field in own if value != field.get_default(call_default_factory=True)}
    return under | {name: _over(value, getattr(default, name, None)) for name, value in (given or {}).items()}
