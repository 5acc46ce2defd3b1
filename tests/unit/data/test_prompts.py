import numpy as np
import pytest

from rayrlhf.data.prompts import PromptStream
from rayrlhf.errors import DataError
from rayrlhf.types import Prompt

PROMPTS = [Prompt(prompt_id=i, text=str(i), token_ids=np.array([i], dtype=np.int32)) for i in range(10)]


def ids(stream: PromptStream, *steps: int) -> list[int]:
    return [prompt.prompt_id for step in steps for prompt in stream.at(step)]


def test_within_an_epoch_none_is_skipped_or_repeated_even_across_steps() -> None:
    stream = PromptStream(PROMPTS, prompts_per_step=4, seed=0)
    drawn = ids(stream, *range(5))
    for epoch in (drawn[:10], drawn[10:]):
        assert sorted(epoch) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_a_step_is_a_pure_function_of_seed_and_number() -> None:
    one, two = (PromptStream(PROMPTS, prompts_per_step=3, seed=5) for _ in range(2))
    ids(one, 0, 1, 2, 3)
    assert ids(one, 7) == ids(two, 7)
    assert ids(PromptStream(PROMPTS, prompts_per_step=10, seed=6), 0) != ids(
        PromptStream(PROMPTS, prompts_per_step=10, seed=5), 0
    )


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], prompts_per_step=1, seed=0)
