"""All or nothing: what one weight update must bring, and what it brought."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rayrlhf.errors import WeightSyncError
from rayrlhf.types import PolicyVersion

T = TypeVar("T")


class WeightUpdate:
    """The names one update must bring against the names it brought; `commit` accepts it whole or not at all."""

    def __init__(self, version: PolicyVersion, *, expected: Iterable[str], noun: str = "tensor") -> None:
        self._version = version
        self._expected = dict.fromkeys(expected)
        self._noun = noun
        self._consumed: dict[str, None] = {}

    @property
    def last(self) -> str | None:
        """The name brought last."""
        return next(reversed(self._consumed), None)

    def watch(self, weights: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
        """Pass the weights through and note each one the consumer takes."""
        for name, tensor in weights:
            self._consumed[name] = None
            yield name, tensor

    def consume(self, names: Iterable[str]) -> None:
        """Note names as brought."""
        self._consumed.update(dict.fromkeys(names))

    def commit(self) -> None:
        """Raise WeightSyncError, naming the tensors, unless exactly the expected ones were brought."""
        missing = [name for name in self._expected if name not in self._consumed]
        unexpected = [name for name in self._consumed if name not in self._expected]
        faults = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        faults += [f"{len(unexpected)} unexpected ({_some(unexpected)})"] if unexpected else []
        if faults:
            raise WeightSyncError(
                f"Version {self._version} did not load whole, by {self._noun}: {' and '.join(faults)}; replace the worker."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
