"""Which worker draws which group, without Ray."""

from dataclasses import replace

import numpy as np

from rayrlhf.actors.routing import RolloutQueue
from rayrlhf.rollout.stream import FinishedGroup, Progress
from rayrlhf.types import Begun, Group, GroupId, RolloutRequest, SampleId, VersionSpan


def group(place: int, *, samples: int = 2, stage: str = "ppo") -> Group:
    requests = tuple(
        RolloutRequest(sample_id=SampleId(stage, 0, place, k), prompt_ids=np.arange(4, dtype=np.int32), seed=k)
        for k in range(samples)
    )
    return Group(group_id=GroupId(stage, 0, place), requests=requests)


def queue(workers: int, *, depth: int = 8) -> RolloutQueue:
    made = RolloutQueue(depth=depth)
    for number in range(workers):
        made.join(number, 0)
    return made


def places(given: dict[int, list[Group]]) -> dict[int, list[int]]:
    return {number: [group.group_id.position for group in groups] for number, groups in given.items()}


def finished(place: int, tokens: int, samples: int = 2, stage: str = "ppo") -> FinishedGroup:
    return FinishedGroup(group_id=GroupId(stage, 0, place), samples=samples, tokens=tokens, min_version=0)


def drawn(tokens: int, samples: int, taken: int) -> Progress:
    return Progress(version=0, tokens=tokens, steps=tokens, samples=samples, taken=taken)


def test_groups_are_spread_and_no_worker_is_given_more_than_fills_it() -> None:
    waiting = queue(2, depth=4)
    waiting.add([group(place) for place in range(6)])
    assert places(waiting.hand_out()) == {0: [0, 2], 1: [1, 3]}
    assert (waiting.waiting, waiting.room) == (2, False)
    waiting.progress(1, drawn(20, samples=2, taken=4), 1.0)
    waiting.take(1, [finished(1, 20)])
    assert places(waiting.hand_out()) == {1: [4]}


def test_one_long_response_does_not_keep_the_places_of_its_group_empty() -> None:
    waiting = queue(1, depth=4)
    waiting.add([group(place, samples=4) for place in range(2)])
    assert places(waiting.hand_out()) == {0: [0]}
    waiting.progress(0, drawn(30, samples=1, taken=4), 1.0)
    assert places(waiting.hand_out()) == {0: [1]}
    waiting.add([group(2)])
    waiting.progress(0, drawn(31, samples=1, taken=4), 1.1)  # It does not know of the second group yet.
    assert places(waiting.hand_out()) == {}


def test_the_next_group_goes_to_the_worker_with_the_fewest_unfinished_tokens() -> None:
    waiting = queue(2, depth=8)
    waiting.add([group(place) for place in range(4)])
    waiting.hand_out()
    waiting.progress(0, drawn(10, 4, 4), 1.0)
    waiting.progress(1, drawn(200, 4, 4), 1.0)  # Nearly done, where the slow one has only begun.
    waiting.add([group(4)])
    assert places(waiting.hand_out()) == {1: [4]}


def test_a_worker_that_has_not_loaded_the_published_version_is_given_nothing() -> None:
    waiting = queue(2, depth=4)
    waiting.publish(4)
    assert (waiting.behind, waiting.room) == ({0, 1}, False)
    waiting.add([group(place) for place in range(3)])
    assert places(waiting.hand_out()) == {}
    waiting.acknowledge(1, 4)
    assert places(waiting.hand_out()) == {1: [0, 1]}
    waiting.acknowledge(0, 3)
    assert (places(waiting.hand_out()), waiting.behind) == ({}, {0})
    waiting.acknowledge(0, 4)
    assert places(waiting.hand_out()) == {0: [2]}
    waiting.join(7, 4)
    assert not waiting.behind


def test_what_is_not_trained_on_goes_first_and_older_prompts_before_younger_ones() -> None:
    waiting = queue(1, depth=2)
    waiting.add([group(5), group(2)])
    waiting.add([group(9, stage="eval")])
    order = []
    for turn in range(1, 4):
        ((given,),) = waiting.hand_out().values()
        order.append(given.group_id)
        waiting.progress(0, drawn(turn, samples=0, taken=2 * turn), 1.0)
        waiting.take(0, [finished(given.group_id.position, 2, stage=given.group_id.stage)])
    assert order == [GroupId("eval", 0, 9), GroupId("ppo", 0, 2), GroupId("ppo", 0, 5)]


def test_a_worker_that_leaves_gives_everything_back() -> None:
    waiting = queue(2, depth=4)
    waiting.add([group(place) for place in range(4)])
    waiting.hand_out()
    waiting.take(0, [finished(0, 9)])
    assert [g.group_id.position for g in waiting.leave(0)] == [2]
    assert (waiting.load(0), waiting.load(1), waiting.workers) == (0, 2, 1)
    waiting.add([group(7)])
    assert places(waiting.hand_out()) == {}


def test_a_retired_worker_is_given_no_more() -> None:
    waiting = queue(2, depth=4)
    waiting.retire(0)
    waiting.add([group(place) for place in range(3)])
    assert places(waiting.hand_out()) == {1: [0, 1]}
    assert not waiting.room


def test_moved_work_goes_on_elsewhere_with_what_is_drawn_of_it() -> None:
    waiting = queue(1, depth=4)
    waiting.add([group(0)])
    waiting.hand_out()
    waiting.retire(0)
    waiting.join(1, 0)
    begun = Begun(
        response_ids=np.arange(3, dtype=np.int32),
        rollout_logprobs=np.zeros(3, dtype=np.float32),
        version_spans=(VersionSpan(version=0, start=0, end=3),),
    )
    first, second = group(0).requests
    moved = Group(group_id=GroupId("ppo", 0, 0), requests=(replace(first, begun=begun), second))
    waiting.move(0, [moved])
    assert waiting.load(0) == 0
    assert waiting.hand_out() == {1: [moved]}


def test_the_speed_is_of_the_time_in_which_something_was_drawn() -> None:
    waiting = queue(2)
    for number, at, tokens in ((0, 0.0, 0), (0, 1.0, 100), (0, 9.0, 100), (0, 10.0, 200), (1, 0.0, 0), (1, 2.0, 100)):
        waiting.progress(number, drawn(tokens, 1, 1), at)
    assert waiting.tokens_per_second() == 100.0 + 50.0
    assert waiting.tokens_per_second() == 0.0
