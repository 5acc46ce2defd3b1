"""The account of every sample: issued, scored and trained exactly once."""

from collections.abc import Iterable, Iterator
from typing import Any

from rayrlhf.errors import LedgerError
from rayrlhf.types import GroupId, SampleId


class Ledger:
    """Follows each sample from its lease to the update that trains it, by the groups they travel in.

    Groups are trained nearly in the order of the prompt stream: the ledger remembers those in flight, those trained ahead
    of an older one, and that everything before is trained, so that its memory stays flat.
    """

    def __init__(self, *, groups_per_step: int) -> None:
        self._per_step = groups_per_step
        self._leased: dict[GroupId, set[SampleId]] = {}
        self._scored: dict[GroupId, set[SampleId]] = {}
        self._trained_through = -1
        """Place in the stream up to which every group is trained."""
        self._ahead: set[int] = set()
        """Places trained beyond it."""
        self.issued = 0
        self.scored = 0
        self.trained = 0
        self.duplicated = 0
        self.dropped = 0
        self.reissued = 0

    def untrained(self, last_step: int) -> Iterator[GroupId]:
        """The groups of the ppo stage's steps before `last_step` that are neither trained nor in flight, in order."""
        for place in range(self._trained_through + 1, last_step * self._per_step):
            group = GroupId("ppo", *divmod(place, self._per_step))
            if place not in self._ahead and group not in self._leased:
                yield group

    def holds(self, group: GroupId) -> bool:
        """Whether the group is in flight."""
        return group in self._leased

    def issue(self, group: GroupId, sample_ids: Iterable[SampleId]) -> None:
        """Lease a group's samples; LedgerError when it is in flight or trained already."""
        if group in self._leased or self._is_trained(group):
            raise LedgerError(f"Group {group} was issued twice.")
        self._leased[group], self._scored[group] = set(sample_ids), set()
        self.issued += len(self._leased[group])

    def reissue(self, group: GroupId) -> None:
        """What of a group was leased or scored and is lost goes back to the queue under the same names."""
        if group not in self._leased:
            raise LedgerError(f"Group {group} cannot be leased again: it is not in flight.")
        self.scored -= len(self._scored[group])
        self._leased[group] |= self._scored[group]
        self._scored[group] = set()
        self.reissued += len(self._leased[group])

    def accept(self, group: GroupId, sample_ids: Iterable[SampleId]) -> bool:
        """Mark samples scored; False, with nothing marked, where one is a second copy, which must not be trained."""
        ids = set(sample_ids)
        if group not in self._leased and not self._is_trained(group):
            raise LedgerError(f"Group {group} came back though it was never issued.")
        if not ids <= self._leased.get(group, set()):
            self.duplicated += len(ids)
            return False
        self._leased[group] -= ids
        self._scored[group] |= ids
        self.scored += len(ids)
        return True

    def drop(self, group: GroupId, sample_ids: Iterable[SampleId]) -> None:
        """Give up samples of a group in flight for a reason the caller has reported."""
        for sample_id in sample_ids:
            if sample_id not in self._leased[group] and sample_id not in self._scored[group]:
                raise LedgerError(f"Sample {sample_id} cannot be dropped: it is not in flight.")
            self._leased[group].discard(sample_id)
            self._scored[group].discard(sample_id)
            self.dropped += 1

    def abandon(self) -> None:
        """Drop whatever is in flight: nothing will be trained any more."""
        for group in list(self._leased):
            self.drop(group, [*self._leased[group], *self._scored[group]])
            del self._leased[group], self._scored[group]

    def train(self, group: GroupId, sample_ids: Iterable[SampleId]) -> None:
        """Close a group: its samples are trained; LedgerError when one of it is missing or foreign."""
        ids = set(sample_ids)
        if group not in self._leased:
            raise LedgerError(f"Group {group} cannot be trained: it is not in flight.")
        odd = sorted((ids ^ self._scored[group]) | self._leased[group])
        if odd:
            raise LedgerError(f"Group {group} cannot be trained: sample {odd[0]} is missing from it or foreign to it.")
        del self._leased[group], self._scored[group]
        self.trained += len(ids)
        self._ahead.add(self._place(group))
        while self._trained_through + 1 in self._ahead:
            self._trained_through += 1
            self._ahead.remove(self._trained_through)

    @property
    def in_flight(self) -> int:
        """Samples leased or scored and not yet trained."""
        return sum(map(len, self._leased.values())) + sum(map(len, self._scored.values()))

    @property
    def lost(self) -> int:
        """Samples that were issued and are neither trained nor dropped nor in flight."""
        return self.issued - self.trained - self.dropped - self.in_flight

    def metrics(self) -> dict[str, float]:
        """Counts since the start of the run, under their declared names."""
        names = ("issued", "scored", "trained", "in_flight", "lost", "duplicated", "dropped", "reissued")
        return {f"ledger/{name}": float(getattr(self, name)) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: samples in flight are left out, since a resumed run issues them anew."""
        return {
            "trained_through": self._trained_through,
            "ahead": sorted(self._ahead),
            "issued": self.issued - self.in_flight,
            "scored": self.scored - sum(map(len, self._scored.values())),
            **{name: getattr(self, name) for name in ("trained", "duplicated", "dropped", "reissued")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._trained_through = int(state["trained_through"])
        self._ahead = set(state["ahead"])
        for name in ("issued", "scored", "trained", "duplicated", "dropped", "reissued"):
            setattr(self, name, int(state[name]))

    def _is_trained(self, group: GroupId) -> bool:
        return self._place(group) <= self._trained_through or self._place(group) in self._ahead

    def _place(self, group: GroupId) -> int:
        return group.step * self._per_step + group.position
