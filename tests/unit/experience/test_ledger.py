import json

import pytest

from rayrlhf.errors import LedgerError
from rayrlhf.experience.ledger import Ledger
from rayrlhf.types import SampleId


def ids(step: int, count: int = 3) -> list[SampleId]:
    return [SampleId("ppo", step, prompt, 0) for prompt in range(count)]


def test_a_sample_walks_from_lease_to_training_once() -> None:
    ledger = Ledger()
    ledger.issue(ids(0))
    assert ledger.in_flight == 3
    assert ledger.accept(ids(0)) == [True, True, True]
    ledger.train(0, ids(0))
    assert (ledger.issued, ledger.scored, ledger.trained, ledger.in_flight, ledger.lost) == (3, 3, 3, 0, 0)


def test_second_copies_are_refused_and_counted_before_and_after_training() -> None:
    ledger = Ledger()
    ledger.issue(ids(0))
    ledger.accept(ids(0))
    assert ledger.accept(ids(0, 1)) == [False]
    ledger.train(0, ids(0))
    assert ledger.accept(ids(0, 1)) == [False]
    assert ledger.duplicated == 2
    assert ledger.trained == 3


def test_issuing_twice_is_an_error_in_flight_and_after_training() -> None:
    ledger = Ledger()
    ledger.issue(ids(0))
    with pytest.raises(LedgerError, match="ppo-0-0-0 was issued twice"):
        ledger.issue(ids(0))
    ledger.accept(ids(0))
    ledger.train(0, ids(0))
    with pytest.raises(LedgerError, match="issued twice"):
        ledger.issue(ids(0))


def test_a_step_closes_only_whole_and_in_order() -> None:
    ledger = Ledger()
    ledger.issue(ids(0))
    ledger.issue(ids(1))
    ledger.accept(ids(0, 2))
    with pytest.raises(LedgerError, match="ppo-0-2-0 is missing"):
        ledger.train(0, ids(0, 2))
    ledger.accept([ids(0)[2], *ids(1)])
    with pytest.raises(LedgerError, match="foreign"):
        ledger.train(0, [*ids(0), ids(1)[0]])
    with pytest.raises(LedgerError, match="out of order"):
        ledger.train(1, ids(1))
    ledger.train(0, ids(0))
    ledger.train(1, ids(1))
    assert ledger.lost == 0


def test_unknown_samples_are_errors() -> None:
    ledger = Ledger()
    for act in (ledger.accept, ledger.reissue, ledger.drop):
        with pytest.raises(LedgerError, match="ppo-7-0-0"):
            act([SampleId("ppo", 7, 0, 0)])


def test_dropped_samples_are_neither_lost_nor_trained() -> None:
    ledger = Ledger()
    ledger.issue(ids(0))
    ledger.accept(ids(0, 2))
    ledger.drop([ids(0)[2]])
    ledger.train(0, ids(0, 2))
    assert (ledger.dropped, ledger.trained, ledger.lost) == (1, 2, 0)


def test_a_resumed_ledger_issues_the_samples_that_were_in_flight_anew() -> None:
    ledger = Ledger()
    for step in (0, 1):
        ledger.issue(ids(step))
        ledger.accept(ids(step))
    ledger.train(0, ids(0))
    ledger.issue(ids(2))
    ledger.reissue(ids(2, 1))
    resumed = Ledger()
    resumed.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert (resumed.issued, resumed.trained, resumed.in_flight, resumed.lost, resumed.reissued) == (3, 3, 0, 0, 1)
    with pytest.raises(LedgerError, match="issued twice"):
        resumed.issue(ids(0))
    resumed.issue(ids(1))
    resumed.accept(ids(1))
    resumed.train(1, ids(1))
    assert resumed.metrics()["ledger/trained"] == 6


def test_memory_stays_flat_over_many_steps() -> None:
    ledger = Ledger()
    for step in range(500):
        ledger.issue(ids(step))
        ledger.accept(ids(step))
        ledger.train(step, ids(step))
    held = [value for value in vars(ledger).values() if isinstance(value, set)]
    assert held
    assert all(len(value) == 0 for value in held)


def test_a_scored_sample_whose_value_is_lost_is_leased_again_and_trained_once() -> None:
    ledger = Ledger()
    ids = [SampleId("ppo", 0, prompt, 0) for prompt in range(4)]
    ledger.issue(ids)
    assert all(ledger.accept(ids))
    ledger.reissue(ids[1:3])
    with pytest.raises(LedgerError, match="cannot be closed"):
        ledger.train(0, ids)
    assert ledger.accept(ids[1:3]) == [True, True]
    ledger.train(0, ids)
    counts = {name: getattr(ledger, name) for name in ("issued", "scored", "trained", "reissued", "lost", "duplicated")}
    assert counts == {"issued": 4, "scored": 4, "trained": 4, "reissued": 2, "lost": 0, "duplicated": 0}
    with pytest.raises(LedgerError, match="not in flight"):
        ledger.reissue(ids[:1])
