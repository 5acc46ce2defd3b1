import json

import pytest

from rayrlhf.errors import LedgerError
from rayrlhf.experience.ledger import Ledger
from rayrlhf.types import GroupId, SampleId


def group(step: int, position: int = 0) -> GroupId:
    return GroupId("ppo", step, position)


def ids(step: int, position: int = 0, count: int = 3) -> list[SampleId]:
    return [SampleId("ppo", step, 100 + position, k) for k in range(count)]


def trained(ledger: Ledger, step: int, position: int = 0) -> None:
    ledger.issue(group(step, position), ids(step, position))
    ledger.accept(group(step, position), ids(step, position))
    ledger.train(group(step, position), ids(step, position))


def test_a_sample_walks_from_lease_to_training_once() -> None:
    ledger = Ledger(groups_per_step=1)
    ledger.issue(group(0), ids(0))
    assert ledger.in_flight == 3
    assert ledger.accept(group(0), ids(0))
    ledger.train(group(0), ids(0))
    assert (ledger.issued, ledger.scored, ledger.trained, ledger.in_flight, ledger.lost) == (3, 3, 3, 0, 0)


def test_second_copies_are_refused_and_counted_before_and_after_training() -> None:
    ledger = Ledger(groups_per_step=1)
    ledger.issue(group(0), ids(0))
    ledger.accept(group(0), ids(0))
    assert not ledger.accept(group(0), ids(0)[:1])
    ledger.train(group(0), ids(0))
    assert not ledger.accept(group(0), ids(0)[:1])
    assert (ledger.duplicated, ledger.trained, ledger.scored) == (2, 3, 3)


def test_issuing_twice_is_an_error_in_flight_and_after_training() -> None:
    ledger = Ledger(groups_per_step=1)
    ledger.issue(group(0), ids(0))
    with pytest.raises(LedgerError, match="ppo-0-0 was issued twice"):
        ledger.issue(group(0), ids(0))
    ledger.accept(group(0), ids(0))
    ledger.train(group(0), ids(0))
    with pytest.raises(LedgerError, match="issued twice"):
        ledger.issue(group(0), ids(0))


def test_a_group_is_trained_only_whole() -> None:
    ledger = Ledger(groups_per_step=1)
    ledger.issue(group(0), ids(0))
    ledger.accept(group(0), ids(0)[:2])
    with pytest.raises(LedgerError, match="ppo-0-100-2 is missing"):
        ledger.train(group(0), ids(0)[:2])
    ledger.accept(group(0), ids(0)[2:])
    with pytest.raises(LedgerError, match="foreign"):
        ledger.train(group(0), [*ids(0), ids(1)[0]])
    ledger.train(group(0), ids(0))
    with pytest.raises(LedgerError, match="not in flight"):
        ledger.train(group(0), ids(0))
    assert ledger.lost == 0


def test_groups_trained_ahead_of_an_older_one_are_remembered_until_it_is_trained() -> None:
    ledger = Ledger(groups_per_step=2)
    for step, position in ((0, 1), (1, 1), (1, 0)):
        trained(ledger, step, position)
    assert list(ledger.untrained(3)) == [group(0, 0), group(2, 0), group(2, 1)]
    trained(ledger, 0, 0)
    assert not ledger._ahead
    assert list(ledger.untrained(3)) == [group(2, 0), group(2, 1)]


def test_unknown_groups_are_errors() -> None:
    ledger = Ledger(groups_per_step=1)
    with pytest.raises(LedgerError, match="ppo-7-0 cannot be leased again"):
        ledger.reissue(group(7))
    with pytest.raises(LedgerError, match="ppo-7-0 came back though it was never issued"):
        ledger.accept(group(7), ids(7))


def test_dropped_samples_are_neither_lost_nor_trained() -> None:
    ledger = Ledger(groups_per_step=1)
    ledger.issue(group(0), ids(0))
    ledger.accept(group(0), ids(0))
    ledger.drop(group(0), ids(0)[2:])
    ledger.train(group(0), ids(0)[:2])
    assert (ledger.dropped, ledger.trained, ledger.lost) == (1, 2, 0)
    ledger.issue(group(1), ids(1))
    ledger.accept(group(1), ids(1)[:1])
    ledger.abandon()
    assert (ledger.dropped, ledger.in_flight, ledger.lost) == (4, 0, 0)


def test_a_resumed_ledger_issues_what_was_in_flight_anew_and_nothing_that_was_trained() -> None:
    ledger = Ledger(groups_per_step=2)
    trained(ledger, 0, 0)
    trained(ledger, 1, 0)
    ledger.issue(group(0, 1), ids(0, 1))
    ledger.accept(group(0, 1), ids(0, 1))
    ledger.issue(group(1, 1), ids(1, 1))
    ledger.reissue(group(1, 1))
    resumed = Ledger(groups_per_step=2)
    resumed.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert (resumed.issued, resumed.trained, resumed.in_flight, resumed.lost, resumed.reissued) == (6, 6, 0, 0, 3)
    assert list(resumed.untrained(2)) == [group(0, 1), group(1, 1)]
    with pytest.raises(LedgerError, match="issued twice"):
        resumed.issue(group(1, 0), ids(1, 0))
    trained(resumed, 0, 1)
    assert resumed.metrics()["ledger/trained"] == 9


def test_memory_stays_flat_over_many_steps() -> None:
    ledger = Ledger(groups_per_step=2)
    for step in range(500):
        trained(ledger, step, 1)
        trained(ledger, step, 0)
    assert not any(value for value in vars(ledger).values() if isinstance(value, set | dict))


def test_a_scored_group_whose_value_is_lost_is_leased_again_and_trained_once() -> None:
    ledger = Ledger(groups_per_step=1)
    ledger.issue(group(0), ids(0))
    assert ledger.accept(group(0), ids(0))
    ledger.reissue(group(0))
    assert (ledger.scored, ledger.reissued) == (0, 3)
    with pytest.raises(LedgerError, match="is missing"):
        ledger.train(group(0), ids(0))
    assert ledger.accept(group(0), ids(0))
    ledger.train(group(0), ids(0))
    assert (ledger.trained, ledger.scored, ledger.lost) == (3, 3, 0)
