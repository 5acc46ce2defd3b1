"""The one batching path: token-budget micro-batches of right-padded sequences."""

from collections.abc import Sequence

import numpy as np
import torch

from rayrlhf.errors import DataError
from rayrlhf.types import MicroBatch


def plan_micro_batches(
    lengths: Sequence[int], *, max_tokens: int, multiple_of: int = 1, counts: Sequence[int] | None = None
) -> list[list[int]]:
    """Indices of each micro-batch: sorted by length, sequences times longest at most `max_tokens`, none left out.

    The number of micro-batches is a multiple of `multiple_of` where there are enough rows to split. `counts` gives the
    sequences of each index (the responses of a prompt, whose length is that of the longest); by default one.
    """
    counts = counts if counts is not None else [1] * len(lengths)
    demand_fit(lengths, counts, max_tokens=max_tokens)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plan: list[list[int]] = []
    width = held = 0
    for index in order:
        if plan and width * (held + counts[index]) <= max_tokens:
            plan[-1].append(index)
            held += counts[index]
        else:
            plan.append([index])
            width, held = lengths[index], counts[index]
    while len(plan) % multiple_of:
        largest = max(range(len(plan)), key=lambda i: len(plan[i]))
        rows = plan[largest]
        if len(rows) == 1:
            break
        plan[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return plan


def demand_fit(lengths: Sequence[int] | np.ndarray, counts: Sequence[int] | np.ndarray, *, max_tokens: int) -> None:
    """DataError where a row of so many sequences of such a length is more than a micro-batch holds."""
    lengths, counts = np.asarray(lengths, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    over = np.flatnonzero(lengths * counts > max_tokens)
    if not len(over):
        return
    length, count = max((int(lengths[i]), int(counts[i])) for i in over)
    each = "" if count == 1 else f"{count} times "
    raise DataError(
        f"A row of {each}{length} tokens does not fit into a micro-batch of {max_tokens} tokens: raise "
        f"micro_batch_tokens to at least {length * count}."
    )


def plan_by_unit(lengths: Sequence[int], units: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """`plan_micro_batches` for each unit by itself: what shares a micro-batch does not depend on what else there is."""
    rows: dict[int, list[int]] = {}
    for index, unit in enumerate(units):
        rows.setdefault(unit, []).append(index)
    return [
        [own[i] for i in part]
        for own in rows.values()
        for part in plan_micro_batches([lengths[i] for i in own], max_tokens=max_tokens)
    ]


def collate(
    sequences: Sequence[np.ndarray], loss_starts: Sequence[int], indices: Sequence[int], *, pad_id: int = 0
) -> MicroBatch:
    """The sequences at `indices`, right-padded; tokens from a sequence's loss start (at least 1) to its end are trained."""
    lengths = torch.tensor([len(sequences[i]) for i in indices])
    time = int(lengths.max())
    input_ids = torch.full((len(indices), time), pad_id, dtype=torch.long)
    for row, i in enumerate(indices):
        input_ids[row, : len(sequences[i])] = torch.from_numpy(sequences[i].astype(np.int64))
    position = torch.arange(time)
    attention_mask = position < lengths.unsqueeze(1)
    starts = torch.tensor([max(1, loss_starts[i]) for i in indices]).unsqueeze(1)
    return MicroBatch(
        indices=tuple(indices),
        input_ids=input_ids,
        lengths=lengths,
        attention_mask=attention_mask,
        loss_mask=attention_mask & (position >= starts),
    )
