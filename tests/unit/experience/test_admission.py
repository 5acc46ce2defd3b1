"""Which groups may be in flight, and which an update takes: by hand, and through arbitrary interleavings."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rayrlhf.errors import LedgerError
from rayrlhf.experience.admission import Admission, Reserve
from rayrlhf.experience.ledger import Ledger
from rayrlhf.types import GroupId, SampleId


def group(place: int, per_step: int = 2) -> GroupId:
    return GroupId("ppo", *divmod(place, per_step))


def admitted(count: int, *, max_staleness: int, per_step: int = 2) -> Admission:
    admission = Admission(groups_per_step=per_step, max_staleness=max_staleness)
    for place in range(count):
        admission.admit(group(place, per_step), 0)
    return admission


def test_without_staleness_a_step_is_in_flight_and_the_update_takes_just_it() -> None:
    admission = admitted(2, max_staleness=0)
    assert admission.room == 0
    with pytest.raises(LedgerError, match="beyond the bound"):
        admission.admit(group(2), 0)
    assert admission.choose([group(1)], 0) == ()
    assert admission.late([group(1)], 0) == (group(0),)
    chosen = admission.choose([group(1), group(0)], 0)
    assert chosen == (group(0), group(1))
    admission.train(chosen, 0)
    assert admission.room == 2


def test_an_update_takes_the_oldest_finished_groups_and_waits_for_no_particular_one() -> None:
    admission = admitted(6, max_staleness=2)
    assert admission.choose([group(5)], 0) == ()
    assert admission.choose([group(5), group(2), group(4)], 0) == (group(2), group(4))


def test_a_straggler_is_waited_for_only_when_its_bound_would_break() -> None:
    admission = admitted(6, max_staleness=2)
    finished = [group(place) for place in range(1, 6)]
    for update, wanted in ((0, (1, 2)), (1, (3, 4))):
        chosen = admission.choose(finished, update)
        assert chosen == tuple(group(place) for place in wanted)
        admission.train(chosen, update)
        finished = [g for g in finished if g not in chosen]
        for place in (6 + 2 * update, 7 + 2 * update):
            admission.admit(group(place), update + 1)
            finished.append(group(place))
    assert (admission.choose(finished, 2), admission.late(finished, 2)) == ((), (group(0),))
    assert admission.choose([*finished, group(0)], 2) == (group(0), group(5))


def test_what_begins_late_is_due_late() -> None:
    admission = admitted(4, max_staleness=1)
    assert admission.choose([group(2), group(3)], 1) == ()
    assert admission.late([group(2), group(3)], 1) == (group(0), group(1))
    for place in (0, 1):
        admission.finish(group(place), 1)
    assert admission.choose([group(2), group(3), group(0), group(1)], 1) == (group(2), group(3))


def test_training_past_a_groups_due_is_an_error() -> None:
    admission = admitted(2, max_staleness=1)
    with pytest.raises(LedgerError, match="was due by update 1 and would be trained by update 2"):
        admission.train([group(0)], 2)


@dataclass
class Work:
    """A group on a simulated worker."""

    oldest: int
    """Version its first token is drawn from."""
    left: list[SampleId] = field(default_factory=list)


class Interleavings(RuleBasedStateMachine):
    """Leases, partial returns, deaths, second copies, updates, checkpoints and resumes, in any order.

    Versions are what the workers would really draw from: a group begins under any version between the one it was admitted
    under and the learner's own, and its oldest token is what staleness is measured by.
    """

    PER_STEP, LAST, SAMPLES = 3, 6, 2

    def __init__(self) -> None:
        super().__init__()
        self.max_staleness = 0
        self.version = 0
        self.trained: list[SampleId] = []
        self.began = False
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(groups_per_step=self.PER_STEP)
        self.admission = Admission(groups_per_step=self.PER_STEP, max_staleness=self.max_staleness)
        self.work: dict[GroupId, Work] = {}
        self.admitted: dict[GroupId, int] = {}
        self.finished: dict[GroupId, int] = {}
        self.saved = (self.ledger.state_dict(), self.version, list(self.trained))

    def ids(self, group_id: GroupId) -> list[SampleId]:
        return [SampleId("ppo", group_id.step, group_id.position, k) for k in range(self.SAMPLES)]

    @precondition(lambda self: not self.began)
    @rule(max_staleness=st.integers(0, 4))
    def configure(self, max_staleness: int) -> None:
        self.max_staleness, self.began = max_staleness, True
        self.start()

    @precondition(lambda self: self.began)
    @rule(count=st.integers(1, 6))
    def admit(self, count: int) -> None:
        for group_id in list(self.ledger.untrained(self.LAST))[:count]:
            if self.admission.room > 0:
                self.ledger.issue(group_id, self.ids(group_id))
                self.admission.admit(group_id, self.version)
                self.admitted[group_id] = self.version

    @rule(data=st.data())
    @precondition(lambda self: self.admitted)
    def begin(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.admitted)))
        oldest = data.draw(st.integers(self.admitted.pop(group_id), self.version))
        self.work[group_id] = Work(oldest, self.ids(group_id))

    @rule(data=st.data())
    @precondition(lambda self: self.work)
    def finish(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.work)))
        work = self.work.pop(group_id)
        assert self.ledger.accept(group_id, work.left)
        self.admission.finish(group_id, work.oldest)
        self.finished[group_id] = work.oldest

    @rule(data=st.data())
    @precondition(lambda self: self.finished)
    def deliver_twice(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.finished)))
        assert not self.ledger.accept(group_id, self.ids(group_id))

    @rule(data=st.data())
    @precondition(lambda self: self.work or self.finished)
    def lose(self, data: st.DataObject) -> None:
        """A worker dies with a group, or a scored one is lost with its node: it begins anew."""
        group_id = data.draw(st.sampled_from(sorted([*self.work, *self.finished])))
        self.work.pop(group_id, None)
        self.finished.pop(group_id, None)
        self.ledger.reissue(group_id)
        self.admission.admit(group_id, self.version)
        self.admitted[group_id] = self.version

    @rule()
    @precondition(lambda self: self.finished and self.version < self.LAST)
    def update(self) -> None:
        chosen = self.admission.choose(list(self.finished), self.version)
        if not chosen:
            return
        assert len(chosen) == self.PER_STEP
        for group_id in chosen:
            assert self.version - self.finished.pop(group_id) <= self.max_staleness
            self.ledger.train(group_id, self.ids(group_id))
            self.trained += self.ids(group_id)
        self.admission.train(chosen, self.version)
        self.version += 1

    @rule()
    @precondition(lambda self: self.began)
    def checkpoint(self) -> None:
        self.saved = (json.loads(json.dumps(self.ledger.state_dict())), self.version, list(self.trained))

    @rule(max_staleness=st.integers(0, 4))
    @precondition(lambda self: self.began)
    def resume(self, max_staleness: int) -> None:
        state, self.version, self.trained = self.saved[0], self.saved[1], list(self.saved[2])
        self.max_staleness = max_staleness
        saved = self.saved
        self.start()
        self.ledger.load_state_dict(state)
        self.saved = saved

    @invariant()
    def nothing_is_lost_or_trained_twice(self) -> None:
        assert self.ledger.lost == 0
        assert len(set(self.trained)) == len(self.trained) == self.ledger.trained
        assert self.admission.in_flight <= (self.max_staleness + 1) * self.PER_STEP

    @invariant()
    def the_next_update_can_always_be_made(self) -> None:
        """With everything in flight finished, and what may be admitted too, there is a batch."""
        if not self.began or self.version >= self.LAST:
            return
        ready = [*self.finished, *self.work, *self.admitted]
        left = len(list(self.ledger.untrained(self.LAST)))
        if len(ready) >= self.PER_STEP or left == 0:
            assert self.admission.choose(ready, self.version)
        else:
            assert self.admission.room >= self.PER_STEP - len(ready)

    def teardown(self) -> None:
        """From wherever it stands, everything is trained, once."""
        if not self.began:
            return
        while self.version < self.LAST:
            self.admit(99)
            for group_id, version in self.admitted.items():
                self.work[group_id] = Work(version, self.ids(group_id))
            self.admitted.clear()
            for group_id, work in self.work.items():
                self.ledger.accept(group_id, work.left)
                self.finished[group_id] = work.oldest
            self.work.clear()
            before = self.version
            self.update()
            assert self.version == before + 1
        assert sorted(self.trained) == sorted(
            sample for place in range(self.LAST * self.PER_STEP) for sample in self.ids(group(place, self.PER_STEP))
        )


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_one_batch_in_waiting_is_enough_until_the_learner_had_to_wait() -> None:
    reserve = Reserve(groups_per_step=10, max_staleness=4)
    assert reserve.groups == 10
    reserve.follow(waited=0.005, learning=1.0)
    assert reserve.groups == 10
    reserve.follow(waited=0.5, learning=1.0)
    assert reserve.groups == 30
    for _ in range(9):
        reserve.follow(waited=0.0, learning=1.0)
    assert reserve.groups == 21
    for _ in range(50):
        reserve.follow(waited=0.0, learning=1.0)
    assert reserve.groups == 10


def test_no_more_wait_than_the_bound_lets_in() -> None:
    reserve = Reserve(groups_per_step=10, max_staleness=1)
    for _ in range(5):
        reserve.follow(waited=1.0, learning=1.0)
    assert reserve.groups == 20
