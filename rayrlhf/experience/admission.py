"""Staleness by admission: which groups may be in flight, which finished ones an update must take, how many are enough."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from rayrlhf.errors import LedgerError
from rayrlhf.types import GroupId, PolicyVersion


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
        self._by_due: Counter[int] = Counter()
        """How many groups are due by each update."""

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
        self._set(group, version + self._max_staleness)

    def finish(self, group: GroupId, oldest: PolicyVersion) -> None:
        """Of a finished group the oldest token's version is known: it may have begun later than it was admitted."""
        self._set(group, max(self._due[group], oldest + self._max_staleness))

    def choose(self, finished: Collection[GroupId], update: int) -> tuple[GroupId, ...]:
        """The groups of `update`, of those finished, oldest prompt first; none where others must be waited for."""
        if len(finished) < self._per_step:
            return ()
        waiting = sorted(finished)
        chosen: set[GroupId] = set()
        for due, needed in self._needed(update):
            needed -= sum(self._due[group] <= due for group in chosen)
            if needed <= 0:
                continue
            fit = [group for group in waiting if self._due[group] <= due and group not in chosen]
            if needed > len(fit):
                return ()
            chosen.update(fit[:needed])
        rest = (group for group in waiting if group not in chosen)
        chosen.update(islice(rest, self._per_step - len(chosen)))
        return tuple(sorted(chosen))

    def late(self, finished: Collection[GroupId], update: int) -> tuple[GroupId, ...]:
        """Groups not finished without which `update` cannot be made: its bound would break otherwise."""
        for due, needed in self._needed(update):
            if needed > sum(self._due[group] <= due for group in finished):
                return tuple(sorted(g for g, own in self._due.items() if own <= due and g not in finished))
        return ()

    def train(self, groups: Sequence[GroupId], update: int) -> None:
        """Take the groups of `update` out of flight; LedgerError if one is past its due."""
        for group in groups:
            due = self._due.pop(group)
            self._by_due[due] -= 1
            if due < update:
                raise LedgerError(f"Group {group} was due by update {due} and would be trained by update {update}.")
        self._by_due = +self._by_due

    def _needed(self, update: int) -> Iterator[tuple[int, int]]:
        """By each due, in order: groups due by then, less what the updates after this one can take of them."""
        count = 0
        for due in sorted(self._by_due):
            count += self._by_due[due]
            yield due, count - (due - update) * self._per_step

    def _set(self, group: GroupId, due: int) -> None:
        if group in self._due:
            self._by_due[self._due[group]] -= 1
        self._due[group] = due
        self._by_due[due] += 1


class Reserve:
    """How many scored groups are enough in waiting: while there are as many, no more are admitted.

    A learner that is slower than the rest would otherwise find every group as stale as the bound allows, for nothing. One
    batch is enough where each is found ready. A learner that had to wait raises it at once, by two batches, and each batch
    that it finds ready lowers it by a tenth of one, so that it hardly waits for want of a reserve.
    """

    _RISE, _FALL = 2.0, 0.1
    _WAITED = 0.01
    """Share of an update's time from which on its batch was waited for."""

    def __init__(self, *, groups_per_step: int, max_staleness: int) -> None:
        self._per_step = groups_per_step
        self._most = max_staleness + 1.0
        self._batches = 1.0

    @property
    def groups(self) -> int:
        """Groups that are enough."""
        return round(self._per_step * self._batches)

    def follow(self, *, waited: float, learning: float) -> None:
        """The learner has waited so many seconds for its last batch, and has taken so many for an update."""
        if waited > self._WAITED * learning:
            self._batches = min(self._most, self._batches + self._RISE)
        else:
            self._batches = max(1.0, self._batches - self._FALL)
