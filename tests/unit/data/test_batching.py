import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.data.batching import collate, plan_micro_batches
from rayrlhf.errors import DataError


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 25), st.integers(1, 4)), min_size=1, max_size=60), st.integers(1, 4))
def test_every_row_is_in_one_micro_batch_within_the_budget(rows: list[tuple[int, int]], multiple: int) -> None:
    lengths, counts = [length for length, _ in rows], [count for _, count in rows]
    plan = plan_micro_batches(lengths, max_tokens=100, multiple_of=multiple, counts=counts)
    assert sorted(i for rows in plan for i in rows) == list(range(len(lengths)))
    assert all(sum(counts[i] for i in rows) * max(lengths[i] for i in rows) <= 100 for rows in plan)
    assert plan == plan_micro_batches(lengths, max_tokens=100, multiple_of=multiple, counts=counts)


def test_rows_of_like_length_go_together() -> None:
    assert plan_micro_batches([3, 50, 2, 49], max_tokens=100) == [[1, 3], [0, 2]]


def test_the_number_of_micro_batches_divides_among_ranks() -> None:
    assert len(plan_micro_batches([10] * 8, max_tokens=1000, multiple_of=2)) == 2
    assert len(plan_micro_batches([10] * 3, max_tokens=1000, multiple_of=4)) == 3


def test_a_row_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(DataError, match="101 tokens does not fit into a micro-batch of 100"):
        plan_micro_batches([5, 101], max_tokens=100)
    with pytest.raises(DataError, match="2 times 60 tokens does not fit into a micro-batch of 100"):
        plan_micro_batches([60], max_tokens=100, counts=[2])


def test_masks_come_from_lengths_whatever_the_ids() -> None:
    sequences = [np.array([0, 0, 5], dtype=np.int32), np.array([7, 0], dtype=np.int32), np.array([9], dtype=np.int32)]
    batch = collate(sequences, [1, 0, 1], [2, 0, 1], pad_id=0)
    assert batch.input_ids.tolist() == [[9, 0, 0], [0, 0, 5], [7, 0, 0]]
    assert batch.lengths.tolist() == [1, 3, 2]
    assert batch.attention_mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert batch.loss_mask.tolist() == [[False, False, False], [False, True, True], [False, True, False]]
    moved = batch.to(torch.device("cpu"))
    assert moved.indices == (2, 0, 1)
