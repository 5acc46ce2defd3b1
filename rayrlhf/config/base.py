"""The base of every configuration node."""

from pydantic import BaseModel, ConfigDict


class Node(BaseModel):
    """A frozen mapping of known keys: unknown keys and silent type conversions are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
