"""The control desk, without Ray: it is a plain object."""

import asyncio

from rayrlhf.actors.control import Answer, ControlActor, Request


async def test_a_request_waits_for_the_driver_and_brings_its_answer_back() -> None:
    desk = ControlActor()
    asking = asyncio.create_task(desk.ask(Request(kind="scale", arguments={"rollout": 3})))
    requests = await desk.exchange({"step": 1}, {}, wait=5.0)
    ((number, request),) = requests.items()
    assert (request.kind, request.arguments) == ("scale", {"rollout": 3})
    assert not asking.done()
    assert await desk.exchange({"step": 2}, {number: Answer(text="Done.")}, wait=0.0) == {}
    assert await asking == Answer(text="Done.")
    assert await desk.status() == {"step": 2}


async def test_requests_are_kept_apart_and_each_is_taken_once() -> None:
    desk = ControlActor()
    asking = [asyncio.create_task(desk.ask(Request(kind=kind, arguments={}))) for kind in ("stop", "scale")]
    await asyncio.sleep(0)
    requests = await desk.exchange({}, {}, wait=5.0)
    assert [request.kind for request in requests.values()] == ["stop", "scale"]
    answers = {number: Answer(text=request.kind, refused=True) for number, request in requests.items()}
    assert await desk.exchange({}, answers, wait=0.0) == {}
    assert [answer.text for answer in await asyncio.gather(*asking)] == ["stop", "scale"]


async def test_an_exchange_without_requests_returns_when_its_time_is_over() -> None:
    begun = asyncio.get_running_loop().time()
    assert await ControlActor().exchange({}, {}, wait=0.1) == {}
    assert 0.05 < asyncio.get_running_loop().time() - begun < 2.0
