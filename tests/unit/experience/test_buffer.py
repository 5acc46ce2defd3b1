import asyncio
from collections.abc import Sequence

import pytest

from rayrlhf.errors import DeadlineError
from rayrlhf.experience.buffer import ExperienceBuffer, ScoredGroup
from rayrlhf.types import GroupId


def scored(position: int) -> ScoredGroup:
    group_id = GroupId("ppo", 0, position)
    return ScoredGroup(group_id=group_id, sample_ids=(), ref=f"ref-{position}", tokens=3, drawn_at=0.0, scored_at=0.0)


def first_two(finished: Sequence[GroupId]) -> Sequence[GroupId]:
    return sorted(finished)[:2] if len(finished) > 1 else ()


async def test_a_batch_is_taken_when_it_can_be_chosen_and_leaves_the_rest() -> None:
    buffer = ExperienceBuffer()
    taking = asyncio.create_task(buffer.take(first_two, timeout=5.0))
    await buffer.put([scored(5)])
    await asyncio.sleep(0)
    assert not taking.done()
    await buffer.put([scored(3), scored(9)])
    assert [group.ref for group in await taking] == ["ref-3", "ref-5"]
    assert len(buffer) == 1


async def test_a_deadline_says_what_is_missing_and_which_group_is_due() -> None:
    buffer = ExperienceBuffer()
    await buffer.put([scored(0)])
    with pytest.raises(DeadlineError, match=r"1 groups are scored, and the next update needs more of them\."):
        await buffer.take(first_two, timeout=0.01)
    with pytest.raises(DeadlineError, match=r"1 groups are scored, and the next update needs ppo-0-7\."):
        await buffer.take(first_two, 0.01, lambda _: (GroupId("ppo", 0, 7),))


async def test_the_deadline_is_of_silence_not_of_the_whole_wait() -> None:
    buffer = ExperienceBuffer()
    taking = asyncio.create_task(buffer.take(lambda f: f if len(f) == 5 else (), timeout=0.2))
    for position in range(5):
        await asyncio.sleep(0.1)
        await buffer.put([scored(position)])
    assert len(await taking) == 5
