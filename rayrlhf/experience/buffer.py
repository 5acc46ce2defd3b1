"""Scored groups on their way to the learner, as references."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rayrlhf.errors import DeadlineError
from rayrlhf.types import GroupId, SampleId

Choose = Callable[[Collection[GroupId]], Sequence[GroupId]]
"""Which of the finished groups the next update takes: none where it waits for others."""


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """The scored samples of one group; they stay where `ref` points, among those of others."""

    group_id: GroupId
    sample_ids: tuple[SampleId, ...]
    """Without those that have no score."""
    ref: Any
    tokens: int
    drawn_at: float
    """When its last response was drawn, by the loop's clock."""
    scored_at: float


class ExperienceBuffer:
    """Holds scored groups until an update takes them; memory is bounded by what admission lets in flight."""

    def __init__(self) -> None:
        self._groups: dict[GroupId, ScoredGroup] = {}
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._groups)

    async def put(self, groups: Sequence[ScoredGroup]) -> None:
        """Add scored groups; wakes the learner."""
        async with self._changed:
            self._groups |= {group.group_id: group for group in groups}
            self._changed.notify_all()

    async def take(self, choose: Choose, timeout: float, late: Choose = lambda _: ()) -> list[ScoredGroup]:
        """Remove and return the groups of the next update, in order; DeadlineError after `timeout` seconds without change.

        Consumes groups, waits until `choose` finds a batch among them, unblocked by `put`. `late` tells which particular
        groups it waits for, if any.
        """
        async with self._changed:
            while not (chosen := choose(self._groups.keys())):
                try:
                    async with asyncio.timeout(timeout):
                        await self._changed.wait()
                except TimeoutError:
                    names = ", ".join(map(str, late(self._groups.keys())[:3]))
                    raise DeadlineError(
                        f"Waited {timeout:.0f} s for experience: {len(self._groups)} groups are scored, and the next update "
                        f"needs {names or 'more of them'}."
                    ) from None
            return [self._groups.pop(group) for group in list(chosen)]

    def drop(self, groups: Sequence[GroupId]) -> None:
        """Forget groups whose value is lost."""
        for group in groups:
            self._groups.pop(group, None)
