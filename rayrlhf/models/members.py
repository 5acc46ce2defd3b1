"""Where the models of a reward model lie: one in its directory, and the others of an ensemble below it."""

from pathlib import Path

MEMBERS = "members"
"""Below a reward model's directory: the other models of its ensemble, each with its own tokenizer."""


def model_directories(directory: str) -> list[str]:
    """The directory of every model, the plain one first."""
    return [directory, *sorted(str(path) for path in Path(directory).joinpath(MEMBERS).glob("[0-9]*"))]
