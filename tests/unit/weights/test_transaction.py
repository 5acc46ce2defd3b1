"""An update is accepted whole or not at all."""

import pytest

from rayrlhf.errors import WeightSyncError
from rayrlhf.weights.transaction import WeightUpdate


def test_a_whole_update_commits() -> None:
    update = WeightUpdate(4, expected=["a", "b"])
    assert list(update.watch([("b", 2), ("a", 1)])) == [("b", 2), ("a", 1)]
    update.commit()


def test_what_the_consumer_did_not_take_is_missing() -> None:
    update = WeightUpdate(4, expected=["a", "b", "c"])
    stream = update.watch([("a", 1), ("b", 2), ("c", 3)])
    assert update.last is None
    next(stream)
    assert update.last == "a"
    with pytest.raises(WeightSyncError, match=r"Version 4 .* 2 missing \(b, c\)"):
        update.commit()


def test_what_nobody_expected_is_named() -> None:
    update = WeightUpdate(4, expected=["a"], noun="engine parameter")
    update.consume(["a", "lm_head"])
    with pytest.raises(WeightSyncError, match=r"by engine parameter: 1 unexpected \(lm_head\)"):
        update.commit()


def test_both_faults_are_told_and_long_lists_are_cut() -> None:
    update = WeightUpdate(1, expected=[f"w{i}" for i in range(5)])
    update.consume(["x"])
    with pytest.raises(WeightSyncError, match=r"5 missing \(w0, w1, w2, \.\.\.\) and 1 unexpected \(x\)"):
        update.commit()
