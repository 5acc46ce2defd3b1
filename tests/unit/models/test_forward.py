"""Forward passes against each model's own forward on unpadded sequences, and float64 arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_lab import FAMILIES, batch_of, log_softmax, policy_model, reward_dir, sequences, stock_output, tokenizer

from rayrlhf.errors import ModelError
from rayrlhf.models.forward import policy_forward, sequence_scores, token_values, values_with_end
from rayrlhf.models.heads import scalar_head
from rayrlhf.models.load import load_critic, load_reward_model

LENGTHS = [9, 3, 14, 6]
STARTS = [4, 1, 13, 2]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_reward_model(reward_dir(tmp_path_factory.mktemp("reward") / "model"))


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_critic(reward_dir(tmp_path_factory.mktemp("critic") / "model"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_logprobs_and_entropy_are_those_of_the_models_own_logits(family: str, temperature: float) -> None:
    model = policy_model(family)
    rows = sequences(LENGTHS)
    outputs = policy_forward(model, batch_of(rows, STARTS), temperature=temperature, with_entropy=True)
    assert outputs.entropy is not None
    assert outputs.logprobs.dtype == outputs.entropy.dtype == torch.float32
    wanted_logprobs = np.zeros((len(rows), max(LENGTHS)))
    wanted_entropy = np.zeros_like(wanted_logprobs)
    for i, (row, start) in enumerate(zip(rows, STARTS, strict=True)):
        distribution = log_softmax(stock_output(model, row) / temperature)
        for t in range(start, len(row)):
            wanted_logprobs[i, t] = distribution[t - 1, row[t]]
            wanted_entropy[i, t] = -(np.exp(distribution[t - 1]) * distribution[t - 1]).sum()
    assert np.abs(wanted_logprobs).max() > 1.0
    np.testing.assert_allclose(outputs.logprobs.numpy(), wanted_logprobs, atol=1e-5)
    np.testing.assert_allclose(outputs.entropy.numpy(), wanted_entropy, atol=1e-5)


def test_the_vocabulary_is_spanned_for_trained_tokens_alone() -> None:
    model = policy_model()
    batch = batch_of(sequences(LENGTHS), STARTS)
    seen: list[tuple[int, ...]] = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape))):
        policy_forward(model, batch, temperature=1.0, with_entropy=False)
    assert seen == [(int(batch.loss_mask.sum()), len(tokenizer()))]
    assert not head._forward_pre_hooks
    assert model(batch.input_ids).logits.shape == (*batch.input_ids.shape, len(tokenizer()))


@torch.no_grad()
def test_batch_mates_and_padding_do_not_change_a_sequence() -> None:
    model = policy_model()
    rows = sequences(LENGTHS)
    together = policy_forward(model, batch_of(rows, STARTS), temperature=0.8, with_entropy=False).logprobs
    for i, row in enumerate(rows):
        alone = policy_forward(
            model, batch_of([row], [STARTS[i]], pad_id=77, extra_padding=11), temperature=0.8, with_entropy=False
        ).logprobs
        torch.testing.assert_close(alone[0, : len(row)], together[i, : len(row)], atol=1e-5, rtol=0)
        assert not alone[0, len(row) :].any()


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "gemma2"])
def test_the_gradient_is_that_of_the_full_logits(family: str) -> None:
    batch = batch_of(sequences(LENGTHS), STARTS)
    weights = torch.randn(batch.input_ids.shape, generator=torch.Generator().manual_seed(0))

    model = policy_model(family)
    outputs = policy_forward(model, batch, temperature=0.7, with_entropy=True)
    assert outputs.entropy is not None
    (weights * (outputs.logprobs + 0.1 * outputs.entropy)).sum().backward()
    ours = {name: p.grad for name, p in model.named_parameters()}

    model = policy_model(family)
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    distribution = (logits / 0.7).log_softmax(dim=-1)
    logprobs = distribution.gather(-1, batch.input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    entropy = -(distribution.exp() * distribution).sum(dim=-1)
    ((weights * batch.loss_mask)[:, 1:] * (logprobs + 0.1 * entropy)).sum().backward()
    for name, parameter in model.named_parameters():
        grad = ours[name]
        assert grad is not None, name
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(grad, parameter.grad, atol=2e-5, rtol=1e-4)


def test_a_batch_that_trains_nothing_gives_every_parameter_a_zero_gradient() -> None:
    model = policy_model()
    outputs = policy_forward(model, batch_of(sequences([1, 1])), temperature=1.0, with_entropy=True)
    assert outputs.entropy is not None
    (outputs.logprobs + outputs.entropy).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@torch.no_grad()
def test_bfloat16_compute_is_close_and_comes_back_in_fp32() -> None:
    model = policy_model(initializer_range=0.05)
    batch = batch_of(sequences(LENGTHS), STARTS)
    exact = policy_forward(model, batch, temperature=1.0, with_entropy=False).logprobs
    rounded = policy_forward(model, batch, temperature=1.0, with_entropy=False, compute_dtype=torch.bfloat16).logprobs
    assert rounded.dtype == torch.float32
    assert 1e-6 < (rounded - exact).abs().max() < 0.1
    assert next(model.parameters()).dtype == torch.float32


@torch.no_grad()
def test_scores_are_those_of_the_stock_forward(reward_model: Any) -> None:
    rows = sequences(LENGTHS)
    rows = [np.append(row, tokenizer().eos_token_id).astype(np.int32) for row in rows]
    batch = batch_of(rows, pad_id=tokenizer().pad_token_id)
    scores = sequence_scores(reward_model, batch)
    stock = reward_model(batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
    assert scores.dtype == torch.float32
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, stock, atol=1e-6, rtol=0)
    for i, row in enumerate(rows):
        alone = sequence_scores(reward_model, batch_of([row], extra_padding=9, pad_id=77))
        torch.testing.assert_close(alone[0], scores[i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_scores_are_read_by_length_even_where_the_last_token_looks_like_padding(reward_model: Any) -> None:
    pad = tokenizer().pad_token_id
    [row] = sequences([7])
    row[-1] = pad
    score = sequence_scores(reward_model, batch_of([row], pad_id=pad, extra_padding=2))
    hidden = reward_model.model(torch.from_numpy(row.astype(np.int64)).unsqueeze(0)).last_hidden_state[0]
    by_position = (hidden.double() @ reward_model.score.weight.double().T).squeeze(-1)
    torch.testing.assert_close(score[0].double(), by_position[-1], atol=1e-5, rtol=0)
    assert abs(float(by_position[-1] - by_position[-2])) > 1e-2


@torch.no_grad()
def test_scores_keep_fp32_steps_under_bfloat16(reward_model: Any) -> None:
    batch = batch_of(sequences([8] * 16))
    exact = sequence_scores(reward_model, batch)
    scores = sequence_scores(reward_model, batch, compute_dtype=torch.bfloat16)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()
    assert (scores - exact).abs().max() < 0.2 * exact.std()


@torch.no_grad()
def test_value_t_is_read_before_token_t(critic: Any) -> None:
    rows = sequences(LENGTHS)
    values, ends = values_with_end(critic, batch_of(rows))
    torch.testing.assert_close(token_values(critic, batch_of(rows)), values)
    assert not values[:, 0].any()
    for i, row in enumerate(rows):
        after = stock_output(critic, row)[:, 0]
        np.testing.assert_allclose(values[i, 1 : len(row)].numpy(), after[:-1], atol=1e-5)
        np.testing.assert_allclose(float(ends[i]), after[-1], atol=1e-5)
    changed = [row.copy() for row in rows]
    for row in changed:
        row[2] = (row[2] + 1) % len(tokenizer())
    moved = (token_values(critic, batch_of(changed)) - values).abs()
    assert moved[:, :3].max() == 0
    assert moved[0, 3] > 1e-4


@torch.no_grad()
def test_the_critic_starts_as_the_reward_model(tmp_path: Path) -> None:
    path = reward_dir(tmp_path / "model")
    batch = batch_of(sequences(LENGTHS))
    _, ends = values_with_end(load_critic(path), batch)
    torch.testing.assert_close(ends, sequence_scores(load_reward_model(path), batch), atol=1e-6, rtol=0)


def test_the_gradient_of_values_is_that_of_the_stock_critic(tmp_path: Path) -> None:
    path = reward_dir(tmp_path / "model")
    batch = batch_of(sequences(LENGTHS), STARTS)
    weights = torch.randn(batch.input_ids.shape, generator=torch.Generator().manual_seed(1)) * batch.loss_mask

    ours = load_critic(path)
    (weights * token_values(ours, batch)).sum().backward()
    stock = load_critic(path)
    after = stock(batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
    (weights[:, 1:] * after[:, :-1]).sum().backward()
    for (name, mine), (_, theirs) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert theirs.grad.abs().max() > 1e-5, name
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-5, rtol=1e-4)


def test_a_model_without_a_scalar_head_is_named() -> None:
    with pytest.raises(ModelError, match="Qwen2ForCausalLM has no linear head of one output"):
        scalar_head(policy_model())
