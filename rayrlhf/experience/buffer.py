"""Scored experience on its way to the learner, by step, as references."""

import asyncio
from dataclasses import dataclass
from typing import Any

from rayrlhf.errors import DeadlineError
from rayrlhf.types import SampleId


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some scored samples of one step; the samples themselves stay where `ref` points."""

    step: int
    sample_ids: tuple[SampleId, ...]
    ref: Any
    tokens: int
    dropped: int = 0
    """Samples drawn with these that are not among them, because they have no score."""


class ExperienceBuffer:
    """Holds the chunks of each step until the step is complete; memory is bounded by the steps in flight."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[Chunk]] = {}
        self._expected: dict[int, int] = {}
        self._changed = asyncio.Condition()

    async def open(self, step: int, samples: int) -> None:
        """Announce that `step` will hold `samples` samples."""
        async with self._changed:
            self._expected[step] = samples
            self._chunks.setdefault(step, [])

    async def put(self, chunk: Chunk) -> None:
        """Add scored samples of an open step; wakes the learner when the step is complete."""
        async with self._changed:
            self._chunks[chunk.step].append(chunk)
            self._changed.notify_all()

    async def take(self, step: int, timeout: float) -> list[Chunk]:
        """Remove and return a complete step, in sample order; DeadlineError after `timeout` seconds.

        Consumes chunks, waits for the rollout loop to complete `step`, unblocked by `put`.
        """
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._complete(step)), timeout)
            except TimeoutError:
                have = sum(len(chunk.sample_ids) for chunk in self._chunks.get(step, []))
                raise DeadlineError(
                    f"Waited {timeout:.0f} s for the experience of step {step}: {have} of "
                    f"{self._expected.get(step, 'an unannounced number of')} samples arrived."
                ) from None
            del self._expected[step]
            full = [chunk for chunk in self._chunks.pop(step) if chunk.sample_ids]
            return sorted(full, key=lambda chunk: chunk.sample_ids[0])

    def _complete(self, step: int) -> bool:
        have = sum(len(chunk.sample_ids) + chunk.dropped for chunk in self._chunks.get(step, []))
        return step in self._expected and have == self._expected[step]
