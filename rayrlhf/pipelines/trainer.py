"""The learner as the control loop knows it: a batch in, metrics and published weights out."""

from collections.abc import Sequence

from rayrlhf.actors.learner import LearnerGroup
from rayrlhf.actors.recorder import Recorder
from rayrlhf.actors.rollout import PublishedWeights
from rayrlhf.experience.buffer import ScoredGroup


class Trainer:
    """Hands batches to the learner and to the recorder, and publishes."""

    def __init__(self, learner: LearnerGroup, recorder: Recorder) -> None:
        self._learner = learner
        self._recorder = recorder
        self._bucket_count = 0

    async def receive(self, step: int, batch: Sequence[ScoredGroup]) -> dict[str, float]:
        """Bring the learner a batch and write its samples down; what their texts tell.

        LostObjectError, with nothing begun, where a part of it is lost.
        """
        wanted = [sample_id for group in batch for sample_id in group.sample_ids]
        refs = list({group.ref.hex(): group.ref for group in batch}.values())
        await self._learner.receive(wanted, refs)
        return await self._recorder.samples(step + 1, wanted, refs)

    async def update(self, step: int) -> dict[str, float]:
        """One update on what was received; its metrics."""
        return await self._learner.update(step)

    async def publish(self) -> PublishedWeights:
        """The policy's weights as references that outlive the learner."""
        if not self._bucket_count:
            self._bucket_count = await self._learner.call("bucket_count")
        return await self._learner.publish(self._bucket_count)
