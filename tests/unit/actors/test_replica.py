"""The life of a replica and the budget of losses, without Ray."""

import asyncio

import pytest

from rayrlhf.actors.replica import Replica, RestartBudget, State
from rayrlhf.errors import WorkerError


async def replica() -> Replica:
    return Replica(3, handle=None, born=0.0, since=0.0)


async def test_a_life_goes_its_way_and_remembers_since_when() -> None:
    one = await replica()
    path = (State.STARTING, State.CATCHING_UP, State.SERVING, State.DRAINING, State.ENDED)
    for now, state in enumerate(path, start=1):
        one.to(state, float(now))
        assert (one.state, one.since) == (state, float(now))
        assert one.alive == (state in path[:3])
    with pytest.raises(WorkerError, match="Worker 3 cannot go from ended to serving"):
        one.to(State.SERVING, 9.0)


@pytest.mark.parametrize("skipped", [State.SERVING, State.DRAINING, State.CATCHING_UP])
async def test_no_worker_serves_before_it_has_caught_up(skipped: State) -> None:
    one = await replica()
    with pytest.raises(WorkerError, match="cannot go from waiting for a place"):
        one.to(skipped, 1.0)


@pytest.mark.parametrize("state", [State.PLACING, State.STARTING, State.CATCHING_UP, State.SERVING, State.DRAINING])
async def test_a_process_may_be_lost_at_any_time_once(state: State) -> None:
    one = await replica()
    one.state = state
    one.to(State.LOST, 1.0)
    assert not one.alive
    with pytest.raises(WorkerError):
        one.to(State.LOST, 2.0)


async def test_the_first_finding_of_a_loss_counts() -> None:
    one = await replica()
    one.lose(WorkerError("first"))
    one.lose(WorkerError("second"))
    with pytest.raises(WorkerError, match="first"):
        await asyncio.wait_for(one.loss, 1.0)


def test_losses_are_borne_by_rate_not_in_total() -> None:
    budget = RestartBudget(most=2, window=100.0)
    assert [budget.bear(at, node=None, born=0.0) for at in (0.0, 60.0, 120.0, 180.0, 240.0)] == [True] * 5
    assert [budget.bear(at, node=None, born=0.0) for at in (250.0, 251.0)] == [False, False]


def test_a_node_is_one_loss_however_many_workers_it_had() -> None:
    budget = RestartBudget(most=1, window=100.0)
    assert all(budget.bear(10.0 + number / 10, node="a", born=0.0) for number in range(8))
    assert not budget.bear(11.0, node="b", born=0.0)


def test_a_worker_that_dies_again_and_again_is_a_loss_each_time() -> None:
    budget = RestartBudget(most=2, window=100.0)
    assert [budget.bear(at, node="a", born=at - 3.0) for at in (10.0, 20.0, 30.0)] == [True, True, False]


def test_a_loss_that_was_the_nodes_is_forgiven() -> None:
    budget = RestartBudget(most=1, window=100.0)
    assert budget.bear(1.0, node="a", born=0.0)
    assert not budget.bear(5.0, node="a", born=2.0)
    budget.forgive()
    budget.forgive()
    assert budget.bear(6.0, node="b", born=0.0)
