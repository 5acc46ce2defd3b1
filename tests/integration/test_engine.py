"""The engine adapter on real vLLM: what is drawn, how it ends, and what is refused before anything runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import engine_lab as lab
import numpy as np
import pytest
import torch

from rayrlhf.algorithms.mismatch import mismatch_quantiles
from rayrlhf.config import RolloutConfig, SamplingConfig
from rayrlhf.errors import ConfigError, DataError, ModelError, RayrlhfError, WeightSyncError
from rayrlhf.rollout.engine import RolloutEngine
from rayrlhf.rollout.parity import FLOAT32, check_parity
from rayrlhf.types import RolloutRequest, SampleId, Trajectory

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="measures vLLM's CPU build")]

NEW_TOKENS = 32


def short_requests(count: int = 60) -> list[RolloutRequest]:
    return lab.requests(prompts=count // 4, samples=4, length=9, seed=5)


def with_prompt(ids: list[int], k: int = 0) -> RolloutRequest:
    return RolloutRequest(sample_id=SampleId("test", 0, 77, k), prompt_ids=np.array(ids, dtype=np.int32), seed=1)


def nearly_full() -> list[RolloutRequest]:
    """Prompts that leave room for one, two or three tokens."""
    return [with_prompt([9] * (lab.MAX_LENGTH - room), room) for room in (1, 2, 3)]


@dataclass(frozen=True)
class Drawn:
    """What one engine did, call by call."""

    first: list[Trajectory]
    second: list[Trajectory]
    alone: list[Trajectory]
    reversed: list[Trajectory]
    nearly_full: list[Trajectory]
    many: list[Trajectory]
    many_alone: list[Trajectory]
    nothing: list[Trajectory]
    refusals: list[str]
    after_refusals: list[Trajectory]
    threads: int
    after_shutdown: str


def complaint(engine: RolloutEngine, requests: list[RolloutRequest]) -> str:
    try:
        engine.generate(requests)
    except DataError as error:
        in_flight = engine._llm.llm_engine.has_unfinished_requests()
        return f"{error}{' and requests were started' if in_flight else ''}"
    return "nothing"


def draw(policy: Path) -> Drawn:
    requests = short_requests()
    # More tokens of prompts than vLLM takes in one step: it would read some of them in parts.
    many = lab.requests(prompts=48, samples=1, length=lab.MAX_LENGTH - 4, seed=3)
    with lab.engine(policy, max_new_tokens=NEW_TOKENS) as engine:
        bad = [[9] * lab.MAX_LENGTH, [], [9, lab.VOCAB], [9, -1]]
        drawn = Drawn(
            first=engine.generate(requests),
            second=engine.generate(requests),
            alone=[row for request in requests[:4] for row in engine.generate([request])],
            reversed=engine.generate(requests[::-1])[::-1],
            nearly_full=engine.generate(nearly_full()),
            many=engine.generate(many),
            many_alone=[row for request in many for row in engine.generate([request])],
            nothing=engine.generate([]),
            refusals=[complaint(engine, [requests[0], with_prompt(ids)]) for ids in bad],
            after_refusals=engine.generate(requests),
            threads=torch.get_num_threads(),
            after_shutdown="",
        )
    engine.shutdown()
    try:
        engine.generate(requests)
    except WeightSyncError as error:
        return replace(drawn, after_shutdown=str(error))
    return drawn


@pytest.fixture(scope="module")
def process() -> Iterator[lab.LabProcess]:
    process = lab.LabProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab.make_policy(tmp_path_factory.mktemp("policy"), seed=1, tied=True)


@pytest.fixture(scope="module")
def drawn(process: lab.LabProcess, policy: Path) -> Drawn:
    return process.run(draw, policy)


def same(left: list[Trajectory], right: list[Trajectory]) -> bool:
    return all(np.array_equal(a.response_ids, b.response_ids) for a, b in zip(left, right, strict=True))


def test_trajectories_answer_their_requests_in_order(drawn: Drawn) -> None:
    for request, row in zip(short_requests(), drawn.first, strict=True):
        assert row.sample_id == request.sample_id
        np.testing.assert_array_equal(row.prompt_ids, request.prompt_ids)
        assert row.response_ids.dtype == np.int32
        assert row.rollout_logprobs.dtype == np.float32
        assert row.rollout_logprobs.shape == row.response_ids.shape


def test_a_request_draws_the_same_tokens_whenever_and_beside_whomever_it_comes(drawn: Drawn) -> None:
    assert same(drawn.first, drawn.second)
    assert same(drawn.first, drawn.reversed)
    assert same(drawn.first[:4], drawn.alone)


def test_more_prompts_than_one_step_takes_draw_what_each_draws_alone(drawn: Drawn) -> None:
    assert same(drawn.many, drawn.many_alone)


def test_samples_of_one_prompt_differ(drawn: Drawn) -> None:
    for start in range(0, len(drawn.first), 4):
        assert len({row.response_ids.tobytes() for row in drawn.first[start : start + 4]}) > 1


def test_both_endings_occur_and_are_named_for_what_they_are(drawn: Drawn) -> None:
    finishes = [row.finish for row in drawn.first]
    assert 5 < finishes.count("eos") < len(finishes) - 5
    for row in drawn.first:
        is_end = np.isin(row.response_ids, lab.EOS)
        assert not is_end[:-1].any()
        assert row.finish == ("eos" if is_end[-1] else "length")
        assert is_end[-1] or len(row.response_ids) == NEW_TOKENS
    last = {int(row.response_ids[-1]) for row in drawn.first if row.finish == "eos"}
    assert last == set(lab.EOS)


def test_log_probs_are_those_of_transformers_at_the_temperature_end_token_included(drawn: Drawn, policy: Path) -> None:
    learner = lab.hf_logprobs(policy, drawn.first, temperature=lab.TEMPERATURE)
    engine = [row.rollout_logprobs for row in drawn.first]
    mismatch = mismatch_quantiles(engine, learner)
    check_parity(mismatch, FLOAT32, temperature=lab.TEMPERATURE)
    ended = [i for i, row in enumerate(drawn.first) if row.finish == "eos"]
    for i in ended:
        assert engine[i][-1] == pytest.approx(learner[i][-1], abs=1e-3)


def test_tokens_are_drawn_from_the_whole_distribution_at_the_temperature(drawn: Drawn, policy: Path) -> None:
    """The model directory asks for top_k=5, top_p=0.5 and a penalty; the draws must not follow it.

    Under the distribution they are drawn from, log-probs average to minus the entropy.
    """
    model = lab.load(policy)
    surprise, entropy, variance = [], [], []
    for row in drawn.first:
        ids = torch.tensor(np.concatenate([row.prompt_ids, row.response_ids]), dtype=torch.long)
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(row.prompt_ids) - 1 : -1].double()
        table = torch.log_softmax(logits / lab.TEMPERATURE, dim=-1)
        moment = [(table.exp() * table**power).sum(-1) for power in (1, 2)]
        surprise.append(-row.rollout_logprobs)
        entropy.append(-moment[0].numpy())
        variance.append((moment[1] - moment[0] ** 2).numpy())
    error = np.concatenate(surprise).mean() - np.concatenate(entropy).mean()
    deviation = np.sqrt(np.concatenate(variance).sum()) / np.concatenate(entropy).size
    assert abs(error) < 4 * deviation


def test_a_response_never_leaves_the_context(drawn: Drawn) -> None:
    for room, row in zip((1, 2, 3), drawn.nearly_full, strict=True):
        assert 1 <= len(row.response_ids) <= room
        assert row.finish == "eos" or len(row.response_ids) == room


def test_no_requests_give_no_trajectories(drawn: Drawn) -> None:
    assert drawn.nothing == []


def test_a_prompt_that_cannot_be_drawn_from_is_refused_before_anything_runs(drawn: Drawn) -> None:
    full, empty, outside, negative = drawn.refusals
    assert f"sample test-0-77-0 has {lab.MAX_LENGTH} tokens; with model.max_length={lab.MAX_LENGTH}" in full
    assert "has 0 tokens" in empty
    assert f"token ids from 9 to {lab.VOCAB}" in outside
    assert "token ids from -1 to 9" in negative
    assert not any("requests were started" in refusal for refusal in drawn.refusals)
    assert same(drawn.first, drawn.after_refusals)


def test_the_engine_computes_with_the_configured_threads(drawn: Drawn) -> None:
    assert drawn.threads == 1


def test_shutdown_is_idempotent_and_ends_the_service(drawn: Drawn) -> None:
    assert "it was shut down; replace the worker" in drawn.after_shutdown


def start(policy: Path, temperature: float, max_length: int, kv_cache_gib: float) -> str:
    try:
        RolloutEngine(
            str(policy),
            sampling=SamplingConfig(temperature=temperature),
            rollout=RolloutConfig(threads=1, kv_cache_gib=kv_cache_gib),
            max_length=max_length,
            device="cpu",
            eos_token_ids=lab.EOS,
            seed=0,
        )
    except RayrlhfError as error:
        return f"{type(error).__name__}: {error}"
    return "started"


@pytest.mark.parametrize(
    ("temperature", "max_length", "kv_cache_gib", "kind", "words"),
    [
        (0.005, 256, 0.03, ConfigError, "sampling.temperature=0.005 is outside"),
        (2.5, 256, 0.03, ConfigError, "sampling.temperature=2.5 is outside"),
        (1.0, 257, 0.03, ModelError, "max_model_len (257) is greater than"),
        (1.0, 256, 1e-5, ModelError, "rollout.kv_cache_gib=1e-05: No available memory"),
    ],
)
def test_an_engine_that_cannot_serve_says_why(
    process: lab.LabProcess,
    policy: Path,
    temperature: float,
    max_length: int,
    kv_cache_gib: float,
    kind: type[RayrlhfError],
    words: str,
) -> None:
    said = process.run(start, policy, temperature, max_length, kv_cache_gib)
    assert said.startswith(f"{kind.__name__}: ")
    assert words in said


def test_a_directory_without_weights_is_named(process: lab.LabProcess, policy: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((policy / "config.json").read_text())
    said = process.run(start, tmp_path, 1.0, 256, 0.03)
    assert said.startswith(f"ModelError: vLLM does not start on the policy in {tmp_path} with")
