"""A record is left out of training exactly where the loss has nothing to learn from it."""

import itertools

import numpy as np
import pytest

from rayrlhf.algorithms.preference_loss import LossSettings, usable_rows
from rayrlhf.config import LossConfig
from rayrlhf.data.schema import Preference, Response, pair
from rayrlhf.data.teaching import teaches, teaching
from rayrlhf.errors import DataError
from rayrlhf.learner.objectives import targets_of
from rayrlhf.types import PreferenceExample

KINDS = LossConfig.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]


def responses(count: int, **more: object) -> tuple[Response, ...]:
    return tuple(Response(text=str(i), **more) for i in range(count))  # type: ignore[arg-type]


RECORDS = {
    "pair": pair("q", "a", "b"),
    "pair with a margin": pair("q", "a", "b", margin=2.0),
    "tie": Preference(prompt="q", responses=responses(2), ranking=((0, 1),)),
    "tie with a margin": Preference(prompt="q", responses=responses(2), ranking=((0, 1),), margin=1.0),
    "ranking": Preference(prompt="q", responses=responses(3), ranking=((2,), (0, 1))),
    "one of many ranked": Preference(prompt="q", responses=responses(3), ranking=((1,),)),
    "rating": Preference(prompt="q", responses=responses(1, rating=2.0)),
    "label": Preference(prompt="q", responses=responses(1, label=False)),
    "nothing": Preference(prompt="q", responses=responses(2)),
}


def example(record: Preference) -> PreferenceExample:
    return PreferenceExample(
        sequences=(np.zeros(1, dtype=np.int32),) * len(record.responses),
        lengths=(1,) * len(record.responses),
        prompt_length=0,
        ranks=record.ranks,
        ratings=tuple(np.nan if r.rating is None else r.rating for r in record.responses),
        labels=tuple(np.nan if r.label is None else float(r.label) for r in record.responses),
        probability=record.probability,
        margin=record.margin,
        weight=record.weight,
    )


@pytest.mark.parametrize(("kind", "learn_ties"), itertools.product(KINDS, (True, False)))
def test_what_is_left_out_is_what_the_loss_does_not_use(kind: str, learn_ties: bool) -> None:
    loss = LossConfig(kind=kind, learn_ties=learn_ties, tie_parameter=2.0)  # type: ignore[arg-type]
    rows = [example(record) for record in RECORDS.values()]
    used = usable_rows(targets_of(rows), LossSettings(**loss.model_dump())).tolist()
    assert [teaches(record, loss) for record in RECORDS.values()] == used


def test_records_that_teach_nothing_are_counted_and_all_of_them_refused() -> None:
    records = list(RECORDS.values())
    kept, told = teaching(records, LossConfig(kind="scaled"), what="p.jsonl")
    assert kept == [RECORDS["pair with a margin"]]
    assert told == (
        "reward.loss.kind=scaled learns nothing from 8 of 9 records, which have no ranking with a margin above 0: they are "
        "left out."
    )
    assert teaching([RECORDS["pair"]], LossConfig(), what="p.jsonl") == ([RECORDS["pair"]], None)
    with pytest.raises(DataError, match=r"kind=binary learns nothing from p\.jsonl: no record has a label"):
        teaching([RECORDS["pair"]], LossConfig(kind="binary"), what="p.jsonl")
