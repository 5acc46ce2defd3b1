"""The account of rows that cannot be used: counted, named, and an error when there are too many."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from rayrlhf.errors import DataError

_NAMED = 3


@dataclass(kw_only=True)
class BadRows:
    """Collects the bad rows of one data set."""

    what: str
    allowed: float
    """Share of all rows that may be bad."""
    total: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, origin: str, reason: str) -> None:
        """Count a bad row; `origin` is its file and line."""
        self.reasons.append(f"{origin}: {reason}")

    def settle(self) -> str | None:
        """A sentence about the bad rows, None where there are none; DataError above the allowed share."""
        if not self.reasons:
            return None
        share = len(self.reasons) / max(1, self.total)
        named = "; ".join(self.reasons[:_NAMED]) + ("; ..." if len(self.reasons) > _NAMED else "")
        told = f"{len(self.reasons)} of {self.total} rows of {self.what} cannot be used: {named}"
        if share > self.allowed:
            raise DataError(f"{told} (data.max_bad_rows allows a share of {self.allowed:g}).")
        return told + "."

    def tell(self) -> None:
        """Say what `settle` has to say."""
        told = self.settle()
        if told is not None:
            tell([told])


def tell(sentences: Iterable[str]) -> None:
    """Say what whoever looks on should know of data."""
    for sentence in sentences:
        print(f"rayrlhf: {sentence}", file=sys.stderr)
