"""Learning-rate schedules."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def lr_multiplier(step: int, *, total_steps: int, warmup_steps: int, schedule: Schedule, min_ratio: float) -> float:
    """Factor of the learning rate at optimizer step `step`, counted from 0.

    Rises linearly to 1 over the warm-up, then stays, or falls to `min_ratio` at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - min_ratio) * progress
        case "cosine":
            return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
