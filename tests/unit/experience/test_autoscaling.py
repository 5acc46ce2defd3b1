"""From what is seen of a run to sizes: each rule, its hysteresis and its bounds."""

from dataclasses import replace
from typing import Any

from rayrlhf.experience.autoscaling import Bounds, Decision, Memory, Seen, SeenRole, Sizes, decide


def role(serving: int, *, full: bool = False, used: float = 0.5, **seen: Any) -> SeenRole:
    """A role with so many workers; what a group takes of them follows from their use, at one group a second."""
    used = 1.0 if full else used
    facts: dict[str, Any] = {
        "bounds": Bounds(least=1, most=16),
        "wanted": serving,
        "serving": serving,
        "used": used,
        "busy": used,
        "waiting": 20.0 if full else 0.0,
        "work": serving * used,
        "start_seconds": 10.0,
    }
    return SeenRole(**facts | seen)


def seen(rollout: SeenRole, scoring: SeenRole, *, waits: float = 0.4, **facts: Any) -> Seen:
    facts = {"since": 0.0, "at": 20.0, "at_bound": 0.0, "remaining": 10_000.0} | facts
    return Seen(rollout=rollout, scoring=scoring, learner_waiting=waits, **facts)


def after(what: Seen, windows: int, memory: Memory | None = None) -> Decision:
    """The decision after so many windows in a row that look alike."""
    memory = memory or Memory()
    for _ in range(windows):
        decision = decide(what, memory)
        memory = decision.memory
    return decision


def settled(what: Seen, windows: int = 3) -> Sizes:
    return after(what, windows).sizes


def test_rollout_grows_where_the_learner_waits_and_all_its_workers_are_busy() -> None:
    decision = after(seen(role(2, full=True), role(2, used=0.65, bounds=Bounds(least=2, most=2))), 2)
    assert decision.sizes == Sizes(3, 2)
    assert decision.reason == (
        "Autoscaling: rollout workers 2 -> 3, the learner waits 40 % of the time and all workers are busy."
    )


def test_scoring_grows_where_the_learner_waits_and_drawn_groups_pile_up() -> None:
    decision = after(seen(role(4, used=0.6), role(2, full=True), waits=0.3), 2)
    assert decision.sizes == Sizes(4, 3)
    assert "30 % of the time and 20 drawn groups wait for their score" in str(decision.reason)


def test_busy_workers_are_no_sign_where_the_learner_does_not_wait() -> None:
    assert settled(seen(role(4, full=True), role(2, used=0.7), waits=0.05, at_bound=0.2)) == Sizes(4, 2)


def test_a_learner_that_waits_for_single_responses_is_not_helped_by_more_workers() -> None:
    assert settled(seen(role(4, used=0.5), role(2, used=0.6), waits=0.6, at_bound=1.0)) == Sizes(4, 2)


def test_idle_roles_shrink_to_what_is_used_where_the_learner_is_the_bottleneck() -> None:
    decision = after(seen(role(8, used=0.3), role(4, used=0.2), waits=0.02, at_bound=0.9), 3)
    assert decision.sizes == Sizes(4, 2)
    assert "30 % of the rollout and 20 % of the scoring capacity is in use" in str(decision.reason)


def test_rollout_workers_are_kept_where_admission_does_not_hold_them_back() -> None:
    assert settled(seen(role(8, used=0.3), role(2, used=0.7), waits=0.02, at_bound=0.1)) == Sizes(8, 2)


def test_a_sign_must_persist_and_a_window_without_it_begins_the_count_anew() -> None:
    wanting = seen(role(2, full=True), role(2, used=0.7))
    quiet = seen(role(2, used=0.8), role(2, used=0.7))
    one = after(wanting, 1)
    assert one.sizes == Sizes(2, 2)
    broken = after(wanting, 1, decide(quiet, one.memory).memory)
    assert broken.sizes == Sizes(2, 2)
    assert decide(wanting, broken.memory).sizes.rollout > 2


def test_use_between_growing_and_shrinking_changes_nothing() -> None:
    for used in (0.76, 0.8, 0.89):
        for waits in (0.0, 0.5):
            assert settled(seen(role(4, used=used), role(4, used=used), waits=waits, at_bound=1.0), 9) == Sizes(4, 4)


def test_after_a_change_a_window_must_begin_a_start_later_to_be_judged() -> None:
    wanting = seen(role(2, full=True), role(2, used=0.7), since=0.0, at=20.0)
    grown = after(wanting, 2)
    pools = {"rollout": role(grown.sizes.rollout, full=True), "scoring": role(grown.sizes.scoring, used=0.7)}
    early = replace(wanting, **pools, since=25.0, at=45.0)
    assert after(early, 5, grown.memory).sizes == grown.sizes
    later = replace(wanting, **pools, since=30.0, at=50.0)
    assert after(later, 2, grown.memory).sizes.rollout > grown.sizes.rollout


def test_nothing_is_judged_while_a_worker_starts() -> None:
    assert settled(seen(role(3, full=True, wanted=4), role(2, used=0.6)), 5) == Sizes(4, 2)


def test_sizes_that_somebody_else_has_set_are_gone_on_from() -> None:
    grown = after(seen(role(2, full=True), role(2, used=0.7)), 2)
    own = seen(role(6, full=True), role(2, used=0.7), since=100.0, at=120.0)
    first = decide(own, grown.memory)
    assert (first.sizes, first.reason, first.memory.changed_at) == (Sizes(6, 2), None, 120.0)
    later = replace(own, since=130.0, at=150.0)
    assert after(later, 2, first.memory).sizes.rollout > 6


def test_bounds_are_kept_and_a_role_at_its_most_does_not_make_the_other_grow() -> None:
    bounds = Bounds(least=3, most=4)
    assert settled(seen(role(4, full=True, bounds=bounds), role(2, used=0.7)), 5) == Sizes(4, 2)
    assert settled(seen(role(3, full=True, bounds=bounds), role(2, used=0.7), waits=0.9), 2).rollout == 4
    assert settled(seen(role(4, used=0.0, bounds=bounds), role(2), waits=0.0, at_bound=1.0), 3).rollout == 3


def test_near_the_end_of_the_run_a_start_is_not_worth_its_time() -> None:
    for remaining, grows in ((2000.0, True), (300.0, True), (150.0, False), (20.0, False)):
        what = seen(role(2, full=True, start_seconds=60.0), role(2, used=0.7), remaining=remaining)
        assert (settled(what, 2).rollout > 2) is grows, remaining


def test_where_there_is_no_place_left_an_idle_role_gives_its_own() -> None:
    stuck = role(6, full=True, wanted=10, placing=4, placing_seconds=20.0)
    decision = after(seen(stuck, role(6, used=0.5)), 2)
    assert decision.sizes == Sizes(8, 4)
    assert decision.memory.places == 12
    assert "rollout workers 10 -> 8 and scoring workers 6 -> 4, the cluster has places for 12 workers" in str(
        decision.reason
    )


def test_a_place_that_nobody_can_give_is_waited_for_and_then_given_up() -> None:
    busy = role(6, used=0.97)
    waiting = role(6, full=True, wanted=7, placing=1, placing_seconds=20.0)
    patient = after(seen(waiting, busy), 5)
    assert (patient.sizes, patient.reason) == (Sizes(7, 6), None)
    given_up = decide(seen(replace(waiting, placing_seconds=70.0), busy), patient.memory)
    assert given_up.sizes == Sizes(6, 6)
    assert given_up.reason == "Autoscaling: rollout workers 7 -> 6, the cluster has no place for more."


def test_a_place_that_a_role_cannot_do_without_is_never_given_up() -> None:
    for full in (True, False):
        short = role(1, full=full, wanted=2, placing=1, placing_seconds=500.0, bounds=Bounds(least=2, most=2))
        decision = after(seen(short, role(1, used=0.8)), 5)
        assert (decision.sizes, decision.reason) == (Sizes(2, 1), None)


def test_a_full_cluster_is_asked_for_one_place_more_after_a_while() -> None:
    full = Memory(places=12, places_at=0.0)
    busy = seen(role(6, full=True), role(6, used=0.8), waits=0.9, since=100.0, at=120.0)
    assert after(busy, 3, full).sizes == Sizes(6, 6)
    assert after(replace(busy, since=700.0, at=720.0), 2, full).sizes == Sizes(7, 6)


def test_a_place_is_not_moved_for_less_than_what_is_sure() -> None:
    full = Memory(places=12, places_at=0.0)
    balanced = seen(role(8, full=True), role(4, used=0.85))
    assert after(balanced, 9, full).sizes == Sizes(8, 4)
