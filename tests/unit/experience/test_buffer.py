import asyncio

import pytest

from rayrlhf.errors import DeadlineError
from rayrlhf.experience.buffer import Chunk, ExperienceBuffer
from rayrlhf.types import SampleId


def chunk(step: int, *prompts: int) -> Chunk:
    sample_ids = tuple(SampleId("ppo", step, prompt, 0) for prompt in prompts)
    return Chunk(step=step, sample_ids=sample_ids, ref=f"ref-{step}-{prompts[0]}", tokens=len(prompts))


async def test_a_step_is_taken_whole_and_in_sample_order() -> None:
    buffer = ExperienceBuffer()
    await buffer.open(0, 4)
    await buffer.open(1, 1)
    taking = asyncio.create_task(buffer.take(0, timeout=5.0))
    await buffer.put(chunk(1, 9))
    await buffer.put(chunk(0, 2, 3))
    await asyncio.sleep(0)
    assert not taking.done()
    await buffer.put(chunk(0, 0, 1))
    assert [c.ref for c in await taking] == ["ref-0-0", "ref-0-2"]
    assert [c.ref for c in await buffer.take(1, timeout=5.0)] == ["ref-1-9"]


async def test_a_deadline_says_what_is_missing() -> None:
    buffer = ExperienceBuffer()
    await buffer.open(3, 4)
    await buffer.put(chunk(3, 0))
    with pytest.raises(DeadlineError, match="experience of step 3: 1 of 4 samples arrived"):
        await buffer.take(3, timeout=0.01)
