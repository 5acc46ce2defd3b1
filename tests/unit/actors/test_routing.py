"""Which worker draws which group, without Ray."""

import numpy as np

from rayrlhf.actors.replica import Replica, State
from rayrlhf.actors.routing import RolloutQueue
from rayrlhf.rollout.stream import FinishedGroup, Progress
from rayrlhf.types import Begun, Group, GroupId, RolloutRequest, SampleId, VersionSpan


def group(place: int, *, samples: int = 2, stage: str = "ppo") -> Group:
    requests = tuple(
        RolloutRequest(sample_id=SampleId(stage, 0, place, k), prompt_ids=np.arange(4, dtype=np.int32), seed=k)
        for k in range(samples)
    )
    return Group(group_id=GroupId(stage, 0, place), requests=requests)


def worker(number: int, version: int = 0) -> Replica:
    return Replica(number, handle=None, born=0.0, since=0.0, state=State.SERVING, version=version)


def queue(*workers: Replica, depth: int = 8) -> RolloutQueue:
    made = RolloutQueue(depth=depth)
    for one in workers:
        made.join(one.number)
    return made


def places(given: list[tuple[Replica, list[Group]]]) -> dict[int, list[int]]:
    return {replica.number: [group.group_id.position for group in groups] for replica, groups in given}


def finished(place: int, tokens: int, samples: int = 2) -> FinishedGroup:
    return FinishedGroup(group_id=GroupId("ppo", 0, place), samples=samples, tokens=tokens, min_version=0)


def drawn(tokens: int, samples: int) -> Progress:
    return Progress(version=0, tokens=tokens, steps=tokens, samples=samples)


async def test_groups_are_spread_and_no_worker_is_given_more_than_fills_it() -> None:
    workers = [worker(0), worker(1)]
    waiting = queue(*workers, depth=4)
    waiting.add([group(place) for place in range(6)], 0)
    assert places(waiting.hand_out(workers)) == {0: [0, 2], 1: [1, 3]}
    assert (waiting.waiting, waiting.room(workers)) == (2, False)
    waiting.take(1, [finished(1, 20)])
    assert places(waiting.hand_out(workers)) == {1: [4]}


async def test_the_next_group_goes_to_the_worker_with_the_fewest_unfinished_tokens() -> None:
    workers = [worker(0), worker(1)]
    waiting = queue(*workers, depth=8)
    waiting.add([group(place) for place in range(4)], 0)
    waiting.hand_out(workers)
    waiting.progress(0, drawn(10, 4), 1.0)
    waiting.progress(1, drawn(200, 4), 1.0)  # Nearly done, where the slow one has only begun.
    waiting.add([group(4)], 0)
    assert places(waiting.hand_out(workers)) == {1: [4]}


async def test_a_worker_that_has_not_caught_up_is_given_nothing_of_the_new_version() -> None:
    behind, current = worker(0, version=3), worker(1, version=4)
    waiting = queue(behind, current, depth=4)
    waiting.add([group(place) for place in range(3)], 4)
    assert places(waiting.hand_out([behind, current])) == {1: [0, 1]}
    behind.version = 4
    assert places(waiting.hand_out([behind, current])) == {0: [2]}


async def test_what_is_not_trained_on_goes_first_and_older_prompts_before_younger_ones() -> None:
    one = worker(0)
    waiting = queue(one, depth=2)
    waiting.add([group(5), group(2)], 0)
    waiting.add([group(9, stage="eval")], 0)
    order = []
    for _ in range(3):
        ((_, (given,)),) = waiting.hand_out([one])
        order.append(given.group_id)
        waiting.take(0, [FinishedGroup(group_id=given.group_id, samples=2, tokens=2, min_version=0)])
    assert order == [GroupId("eval", 0, 9), GroupId("ppo", 0, 2), GroupId("ppo", 0, 5)]


async def test_a_worker_that_leaves_gives_everything_back() -> None:
    workers = [worker(0), worker(1)]
    waiting = queue(*workers, depth=4)
    waiting.add([group(place) for place in range(4)], 0)
    waiting.hand_out(workers)
    waiting.take(0, [finished(0, 9)])
    assert [g.group_id.position for g in waiting.leave(0)] == [2]
    assert (waiting.load(0), waiting.load(1)) == (0, 4)


async def test_moved_work_goes_on_elsewhere_with_what_is_drawn_of_it() -> None:
    workers = [worker(0), worker(1)]
    waiting = queue(*workers, depth=4)
    waiting.add([group(0)], 0)
    waiting.hand_out(workers[:1])
    begun = Begun(
        response_ids=np.arange(3, dtype=np.int32),
        rollout_logprobs=np.zeros(3, dtype=np.float32),
        version_spans=(VersionSpan(version=0, start=0, end=3),),
    )
    first, second = group(0).requests
    moved = Group(
        group_id=GroupId("ppo", 0, 0),
        requests=(
            RolloutRequest(sample_id=first.sample_id, prompt_ids=first.prompt_ids, seed=first.seed, begun=begun),
            second,
        ),
    )
    waiting.move(0, [moved])
    assert waiting.load(0) == 0
    ((to, (given,)),) = waiting.hand_out(workers[1:])
    assert to.number == 1
    assert given is moved


async def test_the_speed_is_of_the_time_in_which_something_was_drawn() -> None:
    workers = [worker(0), worker(1)]
    waiting = queue(*workers)
    for number, at, tokens in ((0, 0.0, 0), (0, 1.0, 100), (0, 9.0, 100), (0, 10.0, 200), (1, 0.0, 0), (1, 2.0, 100)):
        waiting.progress(number, drawn(tokens, 1), at)
    assert waiting.tokens_per_second() == 100.0 + 50.0
    assert waiting.tokens_per_second() == 0.0
