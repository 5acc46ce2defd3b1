"""How many threads the members of an ensemble get that train at once."""

import pytest

from rayrlhf.config import LearnerConfig
from rayrlhf.pipelines.reward import threads_of_each


@pytest.mark.parametrize(
    ("threads", "processes", "cores", "each"),
    [(2, 1, 2.0, 2), (2, 1, 1.0, 1), (2, 1, 0.5, 1), (8, 1, 8.0, 8), (4, 2, 6.0, 3)],
)
def test_no_more_threads_than_cores(threads: int, processes: int, cores: float, each: int) -> None:
    assert threads_of_each(LearnerConfig(threads=threads, processes=processes), cores) == each
