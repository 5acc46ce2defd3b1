import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_lab import (
    ALONE,
    critic_model,
    examples,
    largest_difference,
    pairs,
    parameters,
    policy_model,
    reward_model,
    run_config,
    supervised_learner,
    tokenizer,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rayrlhf.config import RunConfig
from rayrlhf.data import token_codecs
from rayrlhf.data.rows import Rows
from rayrlhf.errors import CheckpointError, DataError
from rayrlhf.learner.base import prepare_base
from rayrlhf.learner.build import build_reward, build_sft
from rayrlhf.learner.objectives import NextToken
from rayrlhf.learner.supervised import SupervisedLearner, some_of
from rayrlhf.reward.model import RewardModel
from rayrlhf.telemetry.metrics import check_names
from rayrlhf.types import Example, PreferenceExample

STEADY = {"lr": 1.0e-3, "eps": 1.0e-4}
"""Adam divides by the gradient's size: with a tiny eps the rounding of zero gradients (key biases) is whole steps."""
STAGES = pytest.mark.parametrize("stage", ["sft", "reward"])


def config(stage: str, **settings: object) -> RunConfig:
    base = {"prompts_per_step": 8, "micro_batch_tokens": 64, "epochs": 2, "optim": {"lr": 1.0e-3}}
    return run_config(**{stage: base | settings})


def test_sft_loss_is_the_mean_over_all_trained_tokens() -> None:
    """Against one unpadded sequence at a time in float64."""
    learner = supervised_learner("sft", config("sft"), rows=8)
    model = policy_model().double()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in examples(8, seed=1):
            ids = torch.from_numpy(row.token_ids.astype(np.int64)).unsqueeze(0)
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
            total -= float(logprobs[row.prompt_length - 1 :].sum())
            count += len(row.token_ids) - row.prompt_length
    metrics = learner.train_step()
    assert metrics["policy/nll"] == pytest.approx(total / count, abs=1e-5)
    assert learner.tokens == count


def test_reward_loss_is_bradley_terry_over_all_pairs() -> None:
    learner = supervised_learner("reward", config("reward"), rows=8)
    model = reward_model().double()
    with torch.no_grad():
        deltas = []
        for row in pairs(8, seed=1):
            chosen, rejected = (
                float(model.score(model.model(torch.from_numpy(x.astype(np.int64))[None]).last_hidden_state[0, -1]))
                for x in row.sequences
            )
            deltas.append(chosen - rejected)
    metrics = learner.train_step()
    assert metrics["reward/loss"] == pytest.approx(np.mean(np.log1p(np.exp(-np.array(deltas)))), abs=1e-5)
    assert metrics["reward/margin"] == pytest.approx(np.mean(deltas), abs=1e-5)
    assert metrics["reward/accuracy"] == np.mean(np.array(deltas) > 0)
    assert learner.tokens == sum(len(x) for p in pairs(8, seed=1) for x in p.sequences)


def test_centering_enters_the_gradient_and_not_the_reported_loss() -> None:
    plain = supervised_learner("reward", config("reward"), rows=8)
    centred = supervised_learner("reward", config("reward", loss={"center_coef": 0.5}), rows=8)
    first, second = plain.train_step(), centred.train_step()
    assert first["reward/loss"] == second["reward/loss"]
    assert first["optim/grad_norm"] != second["optim/grad_norm"]


@STAGES
def test_gradients_do_not_depend_on_micro_batches(stage: str) -> None:
    """One row a pass against all rows in one pass: five steps to the same parameters."""
    trained = []
    for budget in (64, 100, 4096):
        learner = supervised_learner(stage, config(stage, micro_batch_tokens=budget, optim=STEADY))
        for _ in range(5):
            learner.train_step()
        trained.append(parameters(learner._core.model))
    assert largest_difference(trained[0], trained[2]) < 2e-6
    assert largest_difference(trained[1], trained[2]) < 2e-6


def test_training_on_prompts_is_a_choice() -> None:
    responses = supervised_learner("sft", config("sft"), rows=8)
    everything = supervised_learner("sft", config("sft", train_on_prompt=True), rows=8)
    responses.train_step(), everything.train_step()
    assert everything.tokens == responses.tokens + 8 * 2  # prompts of 3 tokens, the first has no predecessor


@STAGES
def test_each_epoch_visits_every_row_once(stage: str) -> None:
    learner = supervised_learner(stage, config(stage, epochs=2), rows=21)
    assert learner.total_steps == 6

    def said(row: Example | PreferenceExample) -> bytes:
        return b"|".join(
            s.tobytes() for s in (row.sequences if isinstance(row, PreferenceExample) else [row.token_ids])
        )

    epochs = [[said(row) for step in steps for row in learner._batch(step)] for steps in (range(3), range(3, 6))]
    for visited in epochs:
        assert len(set(visited)) == len(visited) == 21
    assert epochs[0] != epochs[1]
    assert [len(learner._batch(step)) for step in range(3)] == [8, 8, 5]


def test_max_steps_ends_training() -> None:
    assert supervised_learner("sft", config("sft", max_steps=4)).total_steps == 4


@STAGES
def test_stage_learns_and_evaluates_without_changing_itself(stage: str) -> None:
    learner = supervised_learner(stage, config(stage, epochs=20, optim={"lr": 5.0e-3}))
    weights = parameters(learner._core.model)
    before = learner.evaluate()
    assert largest_difference(weights, parameters(learner._core.model)) == 0.0
    history = [learner.train_step() for _ in range(20)]
    for metrics in (*history, before):
        check_names(metrics)
    name = "policy/nll" if stage == "sft" else "reward/loss"
    assert history[-1][name] < 0.7 * history[0][name]
    if stage == "reward":
        after = learner.evaluate()
        assert after["eval/accuracy"] > 0.85 > before["eval/accuracy"]
        assert after["eval/loss"] < before["eval/loss"]
    assert history[-1]["optim/epoch"] == pytest.approx(20 / 3)


@STAGES
def test_evaluation_does_not_depend_on_micro_batches(stage: str) -> None:
    small = supervised_learner(stage, config(stage, micro_batch_tokens=64)).evaluate()
    large = supervised_learner(stage, config(stage, micro_batch_tokens=4096)).evaluate()
    assert small == pytest.approx(large, abs=1e-6)
    assert set(small) == ({"eval/nll"} if stage == "sft" else {"eval/loss", "eval/accuracy"})


@STAGES
@pytest.mark.parametrize("cut", [2, 3])
def test_resumed_run_equals_straight_run(stage: str, cut: int, tmp_path: Path) -> None:
    """Cut inside an epoch and on its edge (3 steps)."""
    straight, broken, resumed = (supervised_learner(stage, config(stage)) for _ in range(3))
    expected = [straight.train_step() for _ in range(6)]
    for _ in range(cut):
        broken.train_step()
    broken.save(str(tmp_path))
    torch.manual_seed(123)
    resumed.load(str(tmp_path))
    found = [resumed.train_step() for _ in range(6 - cut)]
    assert found == expected[cut:]
    assert resumed.tokens == straight.tokens
    assert largest_difference(parameters(straight._core.model), parameters(resumed._core.model)) == 0.0


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    supervised_learner("sft", config("sft")).save(str(tmp_path))
    with pytest.raises(CheckpointError, match="other models"):
        supervised_learner("reward", config("reward")).load(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"holds no learner\.pt"):
        supervised_learner("sft", config("sft")).load(str(tmp_path / "elsewhere"))
    (tmp_path / "learner.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        supervised_learner("sft", config("sft")).load(str(tmp_path))


def test_random_state_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    learner = supervised_learner("sft", config("sft"))
    torch.manual_seed(7)
    learner.save(str(tmp_path))
    expected = torch.rand(3)
    torch.manual_seed(8)
    learner.load(str(tmp_path))
    assert torch.equal(torch.rand(3), expected)


@STAGES
def test_export_loads_in_stock_transformers(stage: str, tmp_path: Path) -> None:
    learner = supervised_learner(stage, config(stage))
    learner.train_step()
    learner.export(str(tmp_path / "model"))
    auto = AutoModelForCausalLM if stage == "sft" else AutoModelForSequenceClassification
    loaded = auto.from_pretrained(tmp_path / "model").eval()
    batch = torch.arange(2, 12).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(loaded(batch).logits, learner._core.model(batch).logits, atol=1e-6)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="0 rows to train on and 9 held out"):
        SupervisedLearner(
            run_config(),
            run_config().sft,
            NextToken(train_on_prompt=False),
            model=critic_model(),
            tokenizer=tokenizer(),
            train=token_codecs.examples.in_memory([]),
            heldout=token_codecs.examples.in_memory(examples(9, seed=1)),
            ranks=ALONE,
            seed=0,
        )


def test_a_row_that_fits_no_micro_batch_is_told_before_training() -> None:
    settings = run_config()
    small = settings.sft.model_copy(update={"micro_batch_tokens": 4})
    with pytest.raises(DataError, match=r"does not fit into a micro-batch of 4 tokens: raise micro_batch_tokens to at"):
        SupervisedLearner(
            settings,
            small,
            NextToken(train_on_prompt=False),
            model=critic_model(),
            tokenizer=tokenizer(),
            train=token_codecs.examples.in_memory(examples(9, seed=1)),
            heldout=token_codecs.examples.in_memory(examples(9, seed=2)),
            ranks=ALONE,
            seed=0,
        )


def _small_run(tmp_path: Path, **reward: Any) -> RunConfig:
    return run_config(
        data={
            "task": {"name": "innkeeper", "demonstrations": 60, "preferences": 60},
            "max_prompt_tokens": 100,
            "cache": str(tmp_path / "cache"),
        },
        model={
            "init": {**json.loads(json.dumps(run_config().model.init)), "max_position_embeddings": 512},
            "vocab_size": 260,
            "max_length": 400,
        },
        sft={"micro_batch_tokens": 4096, "prompts_per_step": 8},
        reward={"micro_batch_tokens": 4096, "prompts_per_step": 8, **reward},
        ppo={"micro_batch_tokens": 4096},
    )


def test_factory_builds_both_stages_from_directories(tmp_path: Path) -> None:
    settings = _small_run(tmp_path)
    prepare_base(settings, str(tmp_path / "base"))
    sft = build_sft(settings, base_dir=str(tmp_path / "base"), ranks=ALONE)
    assert sft.train_step()["policy/nll"] > 0
    sft.export(str(tmp_path / "sft"))
    reward = build_reward(settings, base_dir=str(tmp_path / "sft"), ranks=ALONE)
    trained = parameters(sft._core.model)
    found = parameters(reward._core.model)
    assert all(torch.equal(found[name], value) for name, value in trained.items() if name != "lm_head.weight")
    assert reward.train_step()["reward/loss"] == pytest.approx(0.69, abs=0.4)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_trained_reward_model_is_trained_on_with_its_heads(tmp_path: Path, heads: int) -> None:
    settings = _small_run(tmp_path, heads=heads)
    prepare_base(settings, str(tmp_path / "base"))
    first = build_reward(settings, base_dir=str(tmp_path / "base"), ranks=ALONE)
    first.export(str(tmp_path / "first"))
    again = _small_run(tmp_path, heads=heads, base=str(tmp_path / "first"), keep_head=True)
    second = build_reward(again, base_dir=str(tmp_path / "first"), ranks=ALONE)
    before, after = parameters(first._core.model), parameters(second._core.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    second.train_step()
    second.export(str(tmp_path / "second"))
    text = np.array([5, 6, 7], dtype=np.int32)
    old, new = (
        RewardModel(str(tmp_path / name), device="cpu", dtype="auto", micro_batch_tokens=64).score([(text,)])
        for name in ("first", "second")
    )
    assert old.shape == new.shape == (1, heads)
    assert not np.array_equal(old, new)


def test_an_evaluation_takes_some_of_the_rows_always_the_same() -> None:
    rows = Rows(5000, lambda i: i, lambda _: np.arange(5000))
    some = some_of(rows, 1000, seed=3)
    assert len(set(some)) == 1000
    assert list(some) == sorted(some) == list(some_of(rows, 1000, seed=3))
    assert list(some) != list(some_of(rows, 1000, seed=4))
    few = rows[:10]
    assert some_of(few, 1000, seed=3) is few
