"""A scoring worker, asked by an evaluation and by training at the same time."""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.actors.scoring import ScoringInfo, ScoringWorker
from rayrlhf.config import RunConfig
from rayrlhf.data.dataset import load_prompts
from rayrlhf.data.exchange import encode_exchange
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import RewardStats, Scale, template_digest
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory, VersionSpan

INIT = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
RESPONSES = [" no.", " yes, sir.", " a room", " bread and soup."]
FUNCTION = """
import pathlib, time

def slowly(prompt, response, reference):
    if response.startswith(" wait"):
        path = pathlib.Path(__file__).with_name("go")
        while not path.exists():
            time.sleep(0.02)
    return len(response) + len(reference)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoringWorker:
    (tmp_path / "slow_rewards.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = [{"prompt": f"Guest {number}?", "reference": number * "x"} for number in range(1, 40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    tokenizer = train_tokenizer([" ".join(RESPONSES)], vocab_size=300)
    export_model(make_policy(INIT, tokenizer, seed=0), tokenizer, tmp_path / "policy")
    judge = tmp_path / "judge"
    export_model(make_reward_model(str(tmp_path / "policy"), tokenizer, seed=2), tokenizer, judge)
    scale = Scale(mean=0.0, std=1.0, length_slope=0.0)
    digest = template_digest(tokenizer)
    RewardStats(scale=scale, members=[scale], temperature=1.0, max_length=64, template=digest, probes=[]).save(judge)
    config = RunConfig.model_validate(
        {
            "name": "merged",
            "stages": ["ppo"],
            "model": {"path": str(tmp_path / "policy"), "max_length": 128},
            "data": {
                "cache": str(tmp_path / "cache"),
                "root": str(tmp_path),
                "prompts": {"path": "prompts.jsonl", "format": "prompts"},
                "heldout_fraction": 0.3,
            },
            "ppo": {
                "max_staleness": 1,
                "rewards": [{"kind": "function", "target": "slow_rewards:slowly"}],
                "guard": {"judge": str(judge)},
            },
            "scoring": {"dtype": "float32"},
        }
    )
    made = ScoringWorker(config, None, str(tmp_path / "policy"), "cpu", 0)
    made.ready()
    return made


def drawn(stage: str, number: int, response: str, tmp_path: Path) -> Trajectory:
    tokenizer = RewardModel(str(tmp_path / "judge"), device="cpu", dtype="float32", micro_batch_tokens=512).tokenizer
    prompt, (ids,) = encode_exchange(tokenizer, f"Guest {number}?", [response])
    return Trajectory(
        sample_id=SampleId(stage, 0, number, 0),
        prompt_ids=prompt,
        response_ids=ids,
        rollout_logprobs=np.full(len(ids), -1.0, dtype=np.float32),
        finish="eos",
        version_spans=(VersionSpan(version=0, start=0, end=len(ids)),),
    )


def test_merged_requests_are_answered_as_if_each_came_alone(worker: ScoringWorker, tmp_path: Path) -> None:
    training = [drawn("ppo", number, text, tmp_path) for number, text in enumerate(RESPONSES)]
    evaluation = [drawn("eval", number, text, tmp_path) for number, text in enumerate(RESPONSES)]
    again = [drawn("eval", number, text, tmp_path) for number, text in enumerate(RESPONSES[::-1])]
    requests = [training, evaluation, again, training[:1] + evaluation[:1]]
    alone = [worker.score([len(request)], request)[0] for request in requests]
    batches = worker._batcher.batches
    with ThreadPoolExecutor(8) as threads:
        futures: list[Future[tuple[list[ScoredTrajectory], ScoringInfo]]] = []
        waiting = threads.submit(worker.score, [1], [drawn("ppo", 9, " wait", tmp_path)])
        while not worker._batcher._worker._work_queue.empty() or worker._batcher._waiting:
            time.sleep(0.01)
        for request in requests:
            futures.append(threads.submit(worker.score, [1] * len(request), request))
            while len(worker._batcher._waiting) < len(futures):
                time.sleep(0.01)
        (tmp_path / "go").touch()
        waiting.result(60.0)
        merged = [future.result(60.0)[0] for future in futures]
    assert worker._batcher.batches == batches + 2  # the one that waited, and all the others as one
    for request, found, wanted in zip(requests, merged, alone, strict=True):
        assert [item.trajectory.sample_id for item in found] == [one.sample_id for one in request]
        assert [item.response_text for item in found] == [item.response_text for item in wanted]
        for a, b in zip(found, wanted, strict=True):
            assert (a.score, a.reference, a.prompt_text) == (b.score, b.reference, b.prompt_text)
            np.testing.assert_allclose(a.ref_logprobs, b.ref_logprobs, atol=1e-5)
            assert (a.judge is None) == a.trajectory.sample_id.trained == (b.judge is None)
            assert a.judge is None or a.judge == pytest.approx(b.judge, abs=1e-5)
    judges = [item.judge for item in merged[1] if item.judge is not None]
    assert np.std(judges) > 0.0
    references = {row.prompt: row.reference for row in load_prompts(worker._make.args[0]).heldout}
    assert {item.reference for item in merged[1]} <= set(references.values())
