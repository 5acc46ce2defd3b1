import pytest
import torch
from torch.distributions import Categorical

from rayrlhf.algorithms import logprobs as module
from rayrlhf.algorithms.logprobs import row_entropy, selected_logprobs, token_entropy, token_logprobs


@pytest.fixture
def logits() -> torch.Tensor:
    return 3.0 * torch.randn(4, 6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_token_t_is_predicted_from_position_t_minus_1(logits: torch.Tensor, temperature: float) -> None:
    tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))
    ours, entropy = (
        token_logprobs(logits, tokens, temperature=temperature),
        token_entropy(logits, temperature=temperature),
    )
    for row in range(4):
        assert ours[row, 0] == entropy[row, 0] == 0
        for t in range(1, 6):
            drawn_from = Categorical(logits=logits[row, t - 1] / temperature)
            torch.testing.assert_close(ours[row, t], drawn_from.log_prob(tokens[row, t]))
            torch.testing.assert_close(entropy[row, t], drawn_from.entropy())


def test_half_precision_logits_are_read_in_fp32(logits: torch.Tensor) -> None:
    rows, ids = logits[0].bfloat16(), torch.arange(6)
    ours = selected_logprobs(rows, ids, temperature=1.0)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, rows.float().log_softmax(-1)[ids, ids])


def test_chunks_do_not_show(logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, ids = logits.reshape(-1, 11), torch.arange(24) % 11
    whole = selected_logprobs(rows, ids, temperature=0.8), row_entropy(rows, temperature=0.8)
    monkeypatch.setattr(module, "_CHUNK", 5)
    torch.testing.assert_close(selected_logprobs(rows, ids, temperature=0.8), whole[0])
    torch.testing.assert_close(row_entropy(rows, temperature=0.8), whole[1])


def test_the_gradient_is_one_hot_minus_softmax(logits: torch.Tensor) -> None:
    rows = logits[0].clone().requires_grad_()
    ids = torch.tensor([3, 1, 4, 1, 5, 9])
    (gradient,) = torch.autograd.grad(selected_logprobs(rows, ids, temperature=0.5).sum(), rows)
    expected = (torch.nn.functional.one_hot(ids, 11) - (rows / 0.5).softmax(-1)) / 0.5
    torch.testing.assert_close(gradient, expected.detach())


def test_no_tokens_are_no_tokens() -> None:
    assert selected_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), temperature=1.0).shape == (0,)
    assert row_entropy(torch.zeros(0, 5), temperature=1.0).shape == (0,)
