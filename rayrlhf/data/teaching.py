"""Which preferences a loss learns anything from; the others are counted, told and left out."""

from collections.abc import Sequence

from rayrlhf.config import LossConfig
from rayrlhf.data.schema import Preference
from rayrlhf.errors import DataError

_NEEDS = {"regression": "rating", "binary": "label", "scaled": "ranking with a margin above 0"}
_ALWAYS_TIES = ("rao_kupper", "davidson")
_SOMETIMES_TIES = ("bradley_terry", "margin")


def teaches(record: Preference, loss: LossConfig) -> bool:
    """Whether the loss has a gradient from the record: the rows that `preference_loss.usable_rows` marks, before tokens."""
    if loss.kind == "regression":
        return any(response.rating is not None for response in record.responses)
    if loss.kind == "binary":
        return any(response.label is not None for response in record.responses)
    if loss.kind == "scaled" and record.margin <= 0:
        return False
    ties = loss.kind in _ALWAYS_TIES or (loss.learn_ties and loss.kind in _SOMETIMES_TIES)
    return len(record.ranking) > 1 or (ties and any(len(group) > 1 for group in record.ranking))


def teaching(records: Sequence[Preference], loss: LossConfig, *, what: str) -> tuple[list[Preference], str | None]:
    """The records that the loss learns from, and a sentence on the others; DataError where it learns from none."""
    kept = [record for record in records if teaches(record, loss)]
    needed = _NEEDS.get(loss.kind, "ranking")
    if records and not kept:
        raise DataError(f"reward.loss.kind={loss.kind} learns nothing from {what}: no record has a {needed}.")
    idle = len(records) - len(kept)
    told = f"reward.loss.kind={loss.kind} learns nothing from {idle:,} of {len(records):,} records, which have no {needed}: "
    return kept, f"{told}they are left out." if idle else None
