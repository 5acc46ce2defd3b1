"""An engine in continuous service, on real vLLM: new weights between two steps, and work that moves."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import engine_lab as lab
import numpy as np
import pytest
import torch

from rayrlhf.algorithms.mismatch import Mismatch, mismatch_quantiles
from rayrlhf.config import OnUpdate, RolloutConfig, SamplingConfig
from rayrlhf.errors import DataError, RayrlhfError, WorkerError
from rayrlhf.rollout.engine import RolloutEngine
from rayrlhf.rollout.parity import FLOAT32, check_parity
from rayrlhf.rollout.stream import FinishedGroup, RolloutStream
from rayrlhf.types import Group, GroupId, RolloutRequest, SampleId, Trajectory

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="measures vLLM's CPU build")]

GROUPS, SAMPLES, RUNNING, NEW_TOKENS = 6, 2, 8, 180


@pytest.fixture(scope="module")
def process() -> Iterator[lab.LabProcess]:
    process = lab.LabProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> lab.Pair:
    return lab.Pair.make(tmp_path_factory.mktemp("pair"), tied=True)


def groups() -> list[Group]:
    requests = lab.requests(prompts=GROUPS, samples=SAMPLES, length=20)
    return [
        Group(group_id=GroupId("ppo", 0, i), requests=tuple(requests[i * SAMPLES : (i + 1) * SAMPLES]))
        for i in range(GROUPS)
    ]


def stream(policy: Path, on_update: OnUpdate) -> RolloutStream:
    make = partial(
        RolloutEngine,
        str(policy),
        sampling=SamplingConfig(temperature=lab.TEMPERATURE, max_new_tokens=NEW_TOKENS),
        rollout=RolloutConfig(threads=1, kv_cache_gib=0.03125),
        max_length=lab.MAX_LENGTH,
        device="cpu",
        eos_token_ids=lab.EOS[:1],
        seed=0,
    )
    made = RolloutStream(make, max_running=RUNNING, on_update=on_update)
    made.start()
    return made


def all_of(made: RolloutStream, count: int = GROUPS) -> tuple[list[Trajectory], list[FinishedGroup]]:
    rows, finished = [], []
    deadline = time.monotonic() + 60
    while len(finished) < count:
        assert time.monotonic() < deadline
        drawn, done, _ = made.collect(0.5)
        rows += drawn
        finished += done
    return rows, finished


def steps(made: RolloutStream, count: int) -> None:
    """Wait until it has made that many steps more."""
    _, _, progress = made.collect(0.0)
    goal = progress.steps + count
    while progress.steps < goal:
        _, finished, progress = made.collect(0.0)
        assert not finished


def worst(rows: list[Trajectory], policies: dict[int, Path], version: int | None = None) -> Mismatch:
    """Engine against transformers, each token under the version its span names; or tokens of one version alone."""
    engine, reference = [], []
    for number, policy in policies.items():
        if version not in (None, number):
            continue
        for row, fresh in zip(rows, lab.hf_logprobs(policy, rows, temperature=lab.TEMPERATURE), strict=True):
            for span in row.version_spans:
                if span.version == number:
                    engine.append(row.rollout_logprobs[span.start : span.end])
                    reference.append(fresh[span.start : span.end])
    return mismatch_quantiles(engine, reference)


@dataclass(frozen=True)
class Served:
    """What came of groups that were in work when new weights came."""

    rows: list[Trajectory]
    finished: list[FinishedGroup]
    version: int
    moved: list[Trajectory]
    given: list[Group]
    samples_left: int


def serve(pair: lab.Pair, on_update: OnUpdate) -> Served:
    made = stream(pair.old, on_update)
    made.submit(groups())
    steps(made, 10)
    version = made.apply_weights(*lab.publish(pair.new, version=1))
    rows, finished = all_of(made)
    made.submit(groups())
    time.sleep(0.1)
    given = made.withdraw()
    _, _, progress = made.collect(0.0)
    early, _ = all_of(made, 0)
    made.submit(given)
    moved, _ = all_of(made, len(given))
    made.stop()
    return Served(rows, finished, version, [*early, *moved], given, progress.samples)


@pytest.fixture(scope="module")
def recompute(process: lab.LabProcess, pair: lab.Pair) -> Served:
    return process.run(serve, pair, "recompute")


@pytest.fixture(scope="module")
def keep(process: lab.LabProcess, pair: lab.Pair) -> Served:
    return process.run(serve, pair, "keep")


@pytest.fixture(scope="module")
def drain(process: lab.LabProcess, pair: lab.Pair) -> Served:
    return process.run(serve, pair, "drain")


def spanning(served: Served) -> list[Trajectory]:
    return [row for row in served.rows if len(row.version_spans) == 2]


def test_after_recompute_every_token_is_of_the_version_its_span_names(recompute: Served, pair: lab.Pair) -> None:
    assert recompute.version == 1
    assert len(spanning(recompute)) >= 4
    check_parity(worst(recompute.rows, {0: pair.old, 1: pair.new}), FLOAT32, temperature=lab.TEMPERATURE)


def test_keep_records_what_was_sampled_from_which_is_no_single_version(keep: Served, pair: lab.Pair) -> None:
    assert len(spanning(keep)) >= 4
    policies = {0: pair.old, 1: pair.new}
    check_parity(worst(keep.rows, policies, version=0), FLOAT32, temperature=lab.TEMPERATURE)
    assert worst(spanning(keep), policies, version=1).p50 > 1e-2
    # What began after the update saw nothing of the old version's cache.
    later = [row for row in keep.rows if row.min_version == 1]
    assert later
    check_parity(worst(later, policies), FLOAT32, temperature=lab.TEMPERATURE)


def test_drain_gives_one_version_a_response(drain: Served, pair: lab.Pair) -> None:
    assert not spanning(drain)
    assert {row.min_version for row in drain.rows} == {0, 1}
    check_parity(worst(drain.rows, {0: pair.old, 1: pair.new}), FLOAT32, temperature=lab.TEMPERATURE)


def test_groups_come_back_whole_with_what_they_are(recompute: Served) -> None:
    assert sorted(group.group_id.position for group in recompute.finished) == list(range(GROUPS))
    rows = iter(recompute.rows)
    for group in recompute.finished:
        own = [next(rows) for _ in range(group.samples)]
        assert [row.sample_id for row in own] == [
            SampleId("test", 0, group.group_id.position, k) for k in range(SAMPLES)
        ]
        assert group.tokens == sum(len(row.response_ids) for row in own)
        assert group.min_version == min(row.min_version for row in own)


def test_withdrawn_work_goes_on_where_it_was(recompute: Served, pair: lab.Pair) -> None:
    begun = {r.sample_id: r.begun for group in recompute.given for r in group.requests if r.begun is not None}
    assert len(begun) >= RUNNING // 2
    assert recompute.samples_left == 0
    moved = {row.sample_id: row for row in recompute.moved}
    assert len(moved) == GROUPS * SAMPLES
    for sample_id, part in begun.items():
        row = moved[sample_id]
        np.testing.assert_array_equal(row.response_ids[: len(part.response_ids)], part.response_ids)
        np.testing.assert_array_equal(row.rollout_logprobs[: len(part.response_ids)], part.rollout_logprobs)
        assert len(row.response_ids) <= NEW_TOKENS
        assert row.version_spans[-1].end == len(row.response_ids)
    check_parity(worst(recompute.moved, {1: pair.new}), FLOAT32, temperature=lab.TEMPERATURE)


def misbehave(policy: Path) -> tuple[str, int, str, str]:
    made = stream(policy, "recompute")
    bad = RolloutRequest(sample_id=SampleId("ppo", 0, 7, 0), prompt_ids=np.zeros(0, dtype=np.int32), seed=0)
    refusal = ""
    try:
        made.submit([*groups(), Group(group_id=GroupId("ppo", 0, 9), requests=(bad,))])
    except DataError as error:
        refusal = str(error)
    _, _, progress = made.collect(0.0)
    made.submit(groups())
    waiting = threading.Thread(target=made.stop)
    waiting.start()
    waiting.join(timeout=30)
    ended = []
    for act in (lambda: made.submit(groups()), lambda: made.collect(5.0)):
        try:
            act()
        except RayrlhfError as error:
            ended.append(f"{type(error).__name__}: {error}")
    return refusal, progress.samples, *ended


def test_a_bad_prompt_is_refused_before_any_is_taken_and_a_stopped_stream_says_so(
    process: lab.LabProcess, pair: lab.Pair
) -> None:
    refusal, samples, submitted, collected = process.run(misbehave, pair.old)
    assert "sample ppo-0-7-0 has 0 tokens" in refusal
    assert samples == 0
    assert submitted == collected == f"{WorkerError.__name__}: The engine's service was ended."


def break_it(policy: Path) -> list[str]:
    made = stream(policy, "recompute")
    made.submit(groups())

    def fail() -> list[Trajectory]:
        raise WorkerError("Broken by hand.")

    made._do(lambda engine: setattr(engine, "step", fail))
    told = []
    for act in (lambda: made.collect(5.0), lambda: made.withdraw(), lambda: made.submit(groups())):
        try:
            act()
        except WorkerError as error:
            told.append(str(error))
    return told


def test_a_failing_engine_is_heard_of_by_every_caller(process: lab.LabProcess, pair: lab.Pair) -> None:
    assert process.run(break_it, pair.old) == ["Broken by hand."] * 3
