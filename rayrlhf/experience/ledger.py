"""The account of every sample: issued, scored and trained exactly once."""

from collections.abc import Iterable
from typing import Any

from rayrlhf.errors import LedgerError
from rayrlhf.types import SampleId


class Ledger:
    """Follows each sample from its lease to the update that trains it.

    Steps of the prompt stream are trained in order, so the ledger remembers single samples only while they are in
    flight; everything of an earlier step is known to be trained, and its memory stays flat.
    """

    def __init__(self) -> None:
        self._leased: set[SampleId] = set()
        self._scored: set[SampleId] = set()
        self._trained_through = -1
        self.issued = 0
        self.scored = 0
        self.trained = 0
        self.duplicated = 0
        self.dropped = 0
        self.reissued = 0

    def issue(self, sample_ids: Iterable[SampleId]) -> None:
        """Lease new samples; LedgerError when one is in flight or trained already."""
        for sample_id in sample_ids:
            if sample_id in self._leased or sample_id in self._scored or sample_id.step <= self._trained_through:
                raise LedgerError(f"Sample {sample_id} was issued twice.")
            self._leased.add(sample_id)
            self.issued += 1

    def reissue(self, sample_ids: Iterable[SampleId]) -> None:
        """What was leased or scored and is lost goes back to the queue under the same names."""
        for sample_id in sample_ids:
            if sample_id in self._scored:
                self._scored.remove(sample_id)
                self._leased.add(sample_id)
                self.scored -= 1
            elif sample_id not in self._leased:
                raise LedgerError(f"Sample {sample_id} cannot be leased again: it is not in flight.")
            self.reissued += 1

    def accept(self, sample_ids: Iterable[SampleId]) -> list[bool]:
        """Mark scored samples; False for each second copy, which must not be trained."""
        accepted = []
        for sample_id in sample_ids:
            if sample_id in self._leased:
                self._leased.remove(sample_id)
                self._scored.add(sample_id)
                self.scored += 1
                accepted.append(True)
            elif sample_id in self._scored or sample_id.step <= self._trained_through:
                self.duplicated += 1
                accepted.append(False)
            else:
                raise LedgerError(f"Sample {sample_id} came back though it was never issued.")
        return accepted

    def drop(self, sample_ids: Iterable[SampleId]) -> None:
        """Give up leased or scored samples for a reason the caller has reported."""
        for sample_id in sample_ids:
            if sample_id not in self._leased and sample_id not in self._scored:
                raise LedgerError(f"Sample {sample_id} cannot be dropped: it is not in flight.")
            self._leased.discard(sample_id)
            self._scored.discard(sample_id)
            self.dropped += 1

    def abandon(self) -> None:
        """Drop whatever is in flight: nothing will be trained any more."""
        self.drop([*self._leased, *self._scored])

    def train(self, step: int, sample_ids: Iterable[SampleId]) -> None:
        """Close `step`: its samples are trained; LedgerError when one of the step is missing or foreign."""
        ids = set(sample_ids)
        expected = {sample_id for sample_id in self._scored if sample_id.step == step}
        unfinished = [sample_id for sample_id in self._leased if sample_id.step == step]
        if ids != expected or unfinished:
            odd = sorted(ids ^ expected) or sorted(unfinished)
            raise LedgerError(f"Step {step} cannot be closed: sample {odd[0]} is missing from it or foreign to it.")
        if step != self._trained_through + 1:
            raise LedgerError(f"Step {step} was trained out of order, after step {self._trained_through}.")
        self._scored -= ids
        self._trained_through = step
        self.trained += len(ids)

    @property
    def in_flight(self) -> int:
        return len(self._leased) + len(self._scored)

    @property
    def lost(self) -> int:
        return self.issued - self.trained - self.dropped - self.in_flight

    def metrics(self) -> dict[str, float]:
        """Counts since the start of the run, under their declared names."""
        names = ("issued", "scored", "trained", "in_flight", "lost", "duplicated", "dropped", "reissued")
        return {f"ledger/{name}": float(getattr(self, name)) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: samples in flight are left out, since a resumed run issues them anew."""
        return {
            "trained_through": self._trained_through,
            "issued": self.issued - self.in_flight,
            "scored": self.scored - len(self._scored),
            **{name: getattr(self, name) for name in ("trained", "duplicated", "dropped", "reissued")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._trained_through = int(state["trained_through"])
        for name in ("issued", "scored", "trained", "duplicated", "dropped", "reissued"):
            setattr(self, name, int(state[name]))
