import copy
import math
from typing import Any

import pytest
import torch
from learner_lab import ALONE, largest_difference, parameters, policy_model
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from rayrlhf.config import OptimConfig
from rayrlhf.errors import NonFiniteError
from rayrlhf.learner.core import TrainableModel, share_of
from rayrlhf.learner.process_group import Ranks


def trainable(
    model: Any = None, *, total_steps: int = 10, max_nonfinite_steps: int = 3, **optim: Any
) -> TrainableModel:
    return TrainableModel(
        policy_model() if model is None else model,
        OptimConfig(**({"lr": 1.0e-2, "schedule": "constant"} | optim)),
        total_steps=total_steps,
        ranks=ALONE,
        device=torch.device("cpu"),
        max_nonfinite_steps=max_nonfinite_steps,
    )


def squares(model: Any) -> torch.Tensor:
    return sum(p.square().sum() for p in model.parameters())  # type: ignore[return-value]


def test_step_is_clipped_adamw_written_out() -> None:
    """Two steps against AdamW (Loshchilov and Hutter 2019, algorithm 2) in float64, decay on matrices alone."""
    core = trainable(lr=1.0e-2, weight_decay=0.1, betas=[0.9, 0.95], eps=1.0e-8, max_grad_norm=0.5)
    expected = {name: p.detach().double().clone() for name, p in core.model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t in (1, 2):
        core.backward(squares(core.model))
        result = core.step()
        gradients = {name: 2 * p for name, p in expected.items()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        assert result.grad_norm == pytest.approx(norm, rel=1e-5)
        for name, p in expected.items():
            g = gradients[name] * 0.5 / norm
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g.square()
            update = first[name] / (1 - 0.9**t) / ((second[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            decay = 1 - 1e-2 * 0.1 if p.ndim >= 2 else 1.0
            expected[name] = decay * p - 1e-2 * update
    found = {name: p.detach().double() for name, p in core.model.named_parameters()}
    assert largest_difference(found, expected) < 1e-6


def test_schedule_follows_the_steps() -> None:
    core = trainable(lr=1.0, total_steps=6, schedule="linear", warmup_steps=2, min_lr_ratio=0.5)
    rates = []
    for _ in range(6):
        core.backward(0.0 * squares(core.model))
        rates.append(core.step().lr)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625])


def test_nonfinite_gradient_is_skipped_and_counted() -> None:
    core = trainable()
    before = parameters(core.model)
    core.backward(math.nan * squares(core.model))
    result = core.step()
    assert result.skipped
    assert largest_difference(before, parameters(core.model)) == 0.0
    core.backward(squares(core.model))
    assert not core.step().skipped
    moved = parameters(core.model)
    assert largest_difference(before, moved) > 0
    assert all(value.isfinite().all() for value in moved.values())


def test_too_many_in_a_row_stop_the_run() -> None:
    core = trainable(max_nonfinite_steps=2)
    for poison in (math.nan, 1.0, math.inf):
        core.backward(poison * squares(core.model))
        core.step()
    core.backward(math.nan * squares(core.model))
    with pytest.raises(NonFiniteError, match=r"2 optimizer steps in a row.*step 3"):
        core.step()


def test_state_round_trip_continues_exactly() -> None:
    straight, broken = trainable(lr=1.0e-2, schedule="cosine"), trainable(lr=1.0e-2, schedule="cosine")
    for _ in range(3):
        for core in (straight, broken):
            core.backward(squares(core.model))
            core.step()
    fresh = trainable(policy_model(seed=9), lr=1.0e-2, schedule="cosine")
    fresh.load_state_dict(broken.state_dict())
    assert fresh.steps == 3
    for core in (straight, fresh):
        core.backward(squares(core.model))
        core.step()
    assert largest_difference(parameters(straight.model), parameters(fresh.model)) == 0.0


def test_a_loaded_state_brings_moments_and_no_settings() -> None:
    """A second step under other settings, against AdamW in float64 that goes on from the first step's moments."""
    before = trainable(lr=1.0e-2, weight_decay=0.1, betas=[0.9, 0.95], eps=1.0e-8, max_grad_norm=0.5)
    started = {name: p.detach().double().clone() for name, p in before.model.named_parameters()}
    before.backward(squares(before.model))
    before.step()
    after = trainable(lr=3.0e-3, weight_decay=0.2, betas=[0.5, 0.6], eps=1.0e-4, max_grad_norm=0.25)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    expected = {name: p.detach().double().clone() for name, p in after.model.named_parameters()}
    after.backward(squares(after.model))
    assert after.step().lr == 3.0e-3

    def clipped(values: dict[str, torch.Tensor], limit: float) -> dict[str, torch.Tensor]:
        norm = math.sqrt(sum(float((2 * p).square().sum()) for p in values.values()))
        return {name: 2 * p * limit / norm for name, p in values.items()}

    first, second = clipped(started, 0.5), clipped(expected, 0.25)
    for name, p in expected.items():
        mean = 0.5 * 0.1 * first[name] + 0.5 * second[name]
        square = 0.6 * 0.05 * first[name].square() + 0.4 * second[name].square()
        update = mean / (1 - 0.5**2) / ((square / (1 - 0.6**2)).sqrt() + 1e-4)
        decay = 1 - 3e-3 * 0.2 if p.ndim >= 2 else 1.0
        expected[name] = decay * p - 3e-3 * update
    found = {name: p.detach().double() for name, p in after.model.named_parameters()}
    assert largest_difference(found, expected) < 1e-6


def test_bad_steps_in_a_row_are_counted_across_a_checkpoint() -> None:
    core, resumed = trainable(max_nonfinite_steps=2), trainable(max_nonfinite_steps=2)
    core.backward(math.nan * squares(core.model))
    core.step()
    resumed.load_state_dict(core.state_dict())
    resumed.backward(math.nan * squares(resumed.model))
    with pytest.raises(NonFiniteError, match="2 optimizer steps in a row"):
        resumed.step()


@pytest.mark.parametrize("steps", [0, 1])
def test_saving_changes_nothing(steps: int) -> None:
    """Not even before the first step, when there are no moments yet (a policy during the critic's warm-up)."""
    saved, plain, resumed = trainable(), trainable(), trainable()
    for _ in range(steps):
        for core in (saved, plain):
            core.backward(squares(core.model))
            core.step()
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    for core in (saved, plain, resumed):
        core.backward(squares(core.model))
        core.step()
        core.backward(core.model.lm_head.weight[3:9].square().sum())
        core.step()
    assert largest_difference(parameters(plain.model), parameters(saved.model)) == 0.0
    assert largest_difference(parameters(plain.model), parameters(resumed.model)) == 0.0


def test_state_holds_tied_weights() -> None:
    model = policy_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "model.embed_tokens.weight" in get_model_state_dict(model)


@pytest.mark.parametrize(("count", "world"), [(1, 2), (4, 2), (5, 2), (7, 3), (2, 3)])
def test_every_rank_gets_the_same_number_of_passes(count: int, world: int) -> None:
    plan = [[i] for i in range(count)]
    shares = [share_of(plan, Ranks(rank=rank, world=world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(rows for share in shares for part in share for rows in part) == list(range(count))
