"""The prompt stream: which prompts a step draws, as a pure function of the step."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.errors import DataError
from rayrlhf.types import Prompt


class PromptStream:
    """Endless epochs over the prompts, each in its own order; nothing but the step number need be remembered."""

    def __init__(self, prompts: Sequence[Prompt], *, prompts_per_step: int, seed: int) -> None:
        if not prompts:
            raise DataError("There are no prompts to draw from.")
        self._prompts = prompts
        self._per_step = prompts_per_step
        self._seed = seed

    @lru_cache(maxsize=16)  # noqa: B019 - as long as the stream lives
    def at(self, step: int) -> list[Prompt]:
        """The prompts of `step`: within an epoch none is skipped or repeated."""
        positions = range(step * self._per_step, (step + 1) * self._per_step)
        size = len(self._prompts)
        orders = {epoch: self._order(epoch) for epoch in {position // size for position in positions}}
        return [self._prompts[orders[position // size][position % size]] for position in positions]

    @lru_cache(maxsize=2)  # noqa: B019 - as above
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self._seed, "prompts", epoch)).permutation(len(self._prompts))
