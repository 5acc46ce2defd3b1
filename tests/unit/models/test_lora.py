"""Adapters: what they leave unchanged, what trains, and what is written."""

from pathlib import Path

import pytest
import torch
from models_lab import policy_model, tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rayrlhf.errors import ModelError
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.load import make_reward_model
from rayrlhf.models.lora import add_adapters, has_adapters

IDS = torch.arange(2, 12).unsqueeze(0)


@pytest.fixture
def plain(tmp_path: Path) -> PreTrainedModel:
    export_model(policy_model(), tokenizer(), tmp_path / "base")
    return make_reward_model(str(tmp_path / "base"), tokenizer(), seed=1)


def test_adapters_change_nothing_before_training_and_train_little(plain: PreTrainedModel) -> None:
    with torch.no_grad():
        before = plain(IDS).logits.clone()
    adapted = add_adapters(plain, rank=4, alpha=8.0, target_modules="all-linear", seed=0)
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, before)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert has_adapters(adapted)
    assert "score.weight" in trained
    assert all("lora_" in name or name == "score.weight" for name in trained)
    assert len(trained) == 1 + 2 * 7 * adapted.config.num_hidden_layers


def test_trained_adapters_are_merged_into_a_plain_directory(plain: PreTrainedModel, tmp_path: Path) -> None:
    adapted = add_adapters(plain, rank=4, alpha=8.0, target_modules="all-linear", seed=0)
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    with torch.no_grad():
        before = float(adapted(IDS).logits)
    for _ in range(5):
        adapted(IDS).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    export_reward_model(adapted, tokenizer(), tmp_path / "written", state_dict=dict(adapted.state_dict()))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "written").eval()
    assert not any("lora" in name for name in loaded.state_dict())
    with torch.no_grad():
        trained, written = float(adapted(IDS).logits), float(loaded(IDS).logits)
    assert abs(trained - before) > 0.1
    assert written == pytest.approx(trained, abs=1e-4)


def test_modules_that_are_not_there_are_named(plain: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match=r"reward\.lora\.target_modules=\['nowhere'\] does not fit this model"):
        add_adapters(plain, rank=4, alpha=8.0, target_modules=["nowhere"], seed=0)
