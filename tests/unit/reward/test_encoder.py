"""A reward model on an encoder: read from its pooled state, with its own end token, by every tool alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reward_lab import WORDS, load, preferences
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizerFast

from rayrlhf.data.exchange import encode_prompt
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.models.export import export_reward_model
from rayrlhf.models.load import make_reward_model
from rayrlhf.reward.judge import score_preferences
from rayrlhf.reward.package import stats_of
from rayrlhf.reward.verify import stock_backends, verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "guest", ":", *map(str, range(20)), *WORDS]
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab=str(root / "vocab.txt"), vocab_file=str(root / "vocab.txt"))
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
    )
    BertModel(settings).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    own = load_tokenizer(str(root / "base"))
    made = make_reward_model(str(root / "base"), own, seed=1)
    export_reward_model(made, own, root / "reward", state_dict=dict(made.state_dict()))
    return root / "reward"


def test_prompt_and_response_are_parted_and_ended_by_the_separator(model: Path) -> None:
    reward_model = load(model)
    (ids,) = reward_model.encode("Guest 3:", " the inn has bread")
    tokens = reward_model.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "guest", "3", ":", "[SEP]", "the", "inn", "has", "bread", "[SEP]"]
    assert len(encode_prompt(reward_model.tokenizer, "Guest 3:")) == 5


def test_scores_are_those_of_the_stock_model_and_of_every_tool(model: Path) -> None:
    reward_model = load(model)
    scored = score_preferences(reward_model, preferences(40), max_length=64)
    stock = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        wanted = [float(stock(torch.from_numpy(s.astype(np.int64))[None]).logits) for s in scored.sequences]
    assert np.std(wanted) > 0.01
    np.testing.assert_allclose(np.concatenate(scored.scores)[:, 0], wanted, atol=1e-5)
    stats_of(reward_model, scored, max_length=64).save(model)
    found = verify(str(model), stock_backends(), tolerance=1e-4)
    assert [(finding.check, finding.told) for finding in found if not finding.passed] == []
