"""Staleness by admission: which groups may be in flight, and which of the finished ones an update must take."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from rayrlhf.errors import LedgerError
from rayrlhf.types import GroupId, PolicyVersion


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The groups of the next update; or, where it cannot be made yet, what it waits for."""

    groups: tuple[GroupId, ...] = ()
    missing: int = 0
    """Groups that must still be finished, whichever come first."""
    due: tuple[GroupId, ...] = ()
    """Groups of which one must be finished, because its bound would break otherwise."""


class Admission:
    """Bounds the staleness of every token by `max_staleness` versions, without discarding anything.

    A group that is admitted under version v holds no token of an older one, so that update v + max_staleness is the last
    that may train it: its due. At most (max_staleness + 1) * groups_per_step groups are in flight, each update trains
    groups_per_step of them, and those are chosen so that all that are left can still be trained in time: by update d,
    no more groups are due than the updates up to d can take.
    """

    def __init__(self, *, groups_per_step: int, max_staleness: int) -> None:
        self._per_step = groups_per_step
        self._max_staleness = max_staleness
        self._due: dict[GroupId, int] = {}

    @property
    def in_flight(self) -> int:
        """Groups admitted and not trained."""
        return len(self._due)

    @property
    def room(self) -> int:
        """Groups that may be admitted now."""
        return (self._max_staleness + 1) * self._per_step - len(self._due)

    def admit(self, group: GroupId, version: PolicyVersion) -> None:
        """Let a group in, or one in flight begin anew, to be drawn by engines of at least `version`, the learner's own."""
        if group not in self._due and self.room <= 0:
            raise LedgerError(f"Group {group} was admitted beyond the bound of {len(self._due)} groups in flight.")
        self._due[group] = version + self._max_staleness

    def finish(self, group: GroupId, oldest: PolicyVersion) -> None:
        """Of a finished group the oldest token's version is known: it may have begun later than it was admitted."""
        self._due[group] = max(self._due[group], oldest + self._max_staleness)

    def choose(self, finished: Collection[GroupId], update: int) -> Choice:
        """The groups of `update`, oldest prompt first, of those finished."""
        if len(finished) < self._per_step:
            late = (group for group, due in self._due.items() if due == update and group not in finished)
            return Choice(missing=self._per_step - len(finished), due=tuple(sorted(late)))
        waiting = sorted(finished)
        chosen: set[GroupId] = set()
        for due in sorted(set(self._due.values())):
            needed = self._needed(due, update) - sum(self._due[group] <= due for group in chosen)
            if needed <= 0:
                continue
            fit = [group for group in waiting if self._due[group] <= due and group not in chosen]
            if needed > len(fit):
                late = (g for g, own in self._due.items() if own <= due and g not in finished)
                return Choice(missing=needed - len(fit), due=tuple(sorted(late)))
            chosen.update(fit[:needed])
        rest = (group for group in waiting if group not in chosen)
        chosen.update(islice(rest, self._per_step - len(chosen)))
        return Choice(groups=tuple(sorted(chosen)))

    def train(self, groups: Sequence[GroupId], update: int) -> None:
        """Take the groups of `update` out of flight; LedgerError if one is past its due."""
        for group in groups:
            due = self._due.pop(group)
            if due < update:
                raise LedgerError(f"Group {group} was due by update {due} and would be trained by update {update}.")

    def _needed(self, due: int, update: int) -> int:
        """Groups due by then, less what the updates after this one can take of them."""
        return sum(own <= due for own in self._due.values()) - (due - update) * self._per_step
