"""A reward model and a critic of any decoder: where transformers has a class, and where it has none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models_lab import batch_of, sequences, tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rayrlhf.errors import ModelError
from rayrlhf.models.classes import causal_class, has_stock_class, scalar_class, unread_by_stock_tools
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.forward import sequence_scores, token_values, values_with_end
from rayrlhf.models.heads import scalar_head
from rayrlhf.models.load import load_critic, load_reward_model, make_critic, make_policy, make_reward_model
from rayrlhf.models.lora import add_adapters

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
DECODERS: dict[str, dict[str, Any]] = {
    "cohere": _SMALL | {"model_type": "cohere"},
    "gemma3": _SMALL | {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 4},
    "granite": _SMALL | {"model_type": "granite"},
    # Its experts are fused in memory and apart on disk.
    "olmoe": _SMALL | {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
    # Its causal model calls the backbone otherwise than `base_model_prefix` says.
    "llama4": _SMALL
    | {"model_type": "llama4_text", "head_dim": 32, "intermediate_size_mlp": 48, "num_local_experts": 2},
    # The last hidden state is narrower than the hidden states between.
    "opt": {
        "model_type": "opt",
        "hidden_size": 64,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "do_layer_norm_before": False,
    },
}


def base_dir(directory: Path, name: str) -> str:
    export_model(make_policy(DECODERS[name], tokenizer(), seed=0), tokenizer(), directory)
    return str(directory)


@pytest.mark.parametrize("name", DECODERS)
def test_a_reward_model_scores_by_its_head_on_the_plain_backbone_and_survives_its_export(
    tmp_path: Path, name: str
) -> None:
    base = base_dir(tmp_path / "base", name)
    made = make_reward_model(base, tokenizer(), seed=1)
    batch = batch_of(sequences([11, 6]))
    backbone = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = backbone(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
        wanted = torch.stack([hidden[0, 10], hidden[1, 5]]) @ scalar_head(made).weight[0]
        torch.testing.assert_close(sequence_scores(made, batch), wanted, atol=1e-5, rtol=0)
    sequence_scores(made, batch).sum().backward()
    assert all(p.grad is not None for p in scalar_head(made).parameters())
    export_reward_model(made, tokenizer(), tmp_path / "reward", state_dict=dict(made.state_dict()))
    with torch.no_grad():
        loaded = load_reward_model(str(tmp_path / "reward"))
        torch.testing.assert_close(sequence_scores(loaded, batch), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_a_critic_starts_at_zero_or_as_the_reward_model(tmp_path: Path, name: str) -> None:
    base = base_dir(tmp_path / "base", name)
    batch = batch_of(sequences([11, 6]))
    with torch.no_grad():
        assert not token_values(make_critic(base), batch).any()
        made = make_reward_model(base, tokenizer(), seed=1)
        export_reward_model(made, tokenizer(), tmp_path / "reward", state_dict=dict(made.state_dict()))
        critic = load_critic(str(tmp_path / "reward"))
        _, ends = values_with_end(critic, batch)
        torch.testing.assert_close(ends, sequence_scores(made, batch), atol=1e-5, rtol=0)
    export_model(critic, tokenizer(), tmp_path / "critic")
    assert AutoTokenizer.from_pretrained(tmp_path / "critic").get_vocab() == tokenizer().get_vocab()


def test_adapters_on_a_made_class_are_merged_into_a_plain_model(tmp_path: Path) -> None:
    made = make_reward_model(base_dir(tmp_path / "base", "cohere"), tokenizer(), seed=1)
    adapted = add_adapters(made, rank=2, alpha=4.0, target_modules=["q_proj", "v_proj"], seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of(sequences([11, 6]))
    with torch.no_grad():
        wanted = sequence_scores(adapted, batch)
        export_reward_model(adapted, tokenizer(), tmp_path / "written", state_dict=dict(adapted.state_dict()))
        loaded = sequence_scores(load_reward_model(str(tmp_path / "written")), batch)
    torch.testing.assert_close(loaded, wanted, atol=1e-5, rtol=0)


def test_stock_classes_are_used_where_there_are_some_and_their_absence_is_told(tmp_path: Path) -> None:
    stock, made = (AutoConfig.for_model(name) for name in ("qwen2", "cohere"))
    assert has_stock_class(stock, "token")
    assert unread_by_stock_tools(stock, "token") is None
    assert scalar_class(stock, "sequence").__name__ == "Qwen2ForSequenceClassification"
    told = unread_by_stock_tools(made, "sequence")
    assert told is not None
    assert "no AutoModelForSequenceClassification for cohere" in told
    assert scalar_class(made, "sequence") is scalar_class(made, "sequence")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(base_dir(tmp_path / "base", "cohere"))


def test_what_is_no_decoder_is_named() -> None:
    with pytest.raises(ModelError, match="no causal language model of the type t5"):
        causal_class(AutoConfig.for_model("t5"))


ENCODERS: dict[str, dict[str, int]] = {
    **{key: {} for key in ["bert", "deberta", "deberta-v2", "roberta", "xlm-roberta", "mpnet", "ernie"]},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
    "modernbert": {"cls_token_id": 0, "sep_token_id": 1, "bos_token_id": 0, "eos_token_id": 1},
}


@pytest.mark.parametrize("model_type", ENCODERS)
def test_whatever_lies_outside_the_backbone_is_the_head(tmp_path: Path, model_type: str) -> None:
    usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer()),
        max_position_embeddings=64,
        pad_token_id=0,
        **({} if model_type == "distilbert" else usual),
        **ENCODERS[model_type],
    )
    AutoModel.from_config(own).save_pretrained(tmp_path / "encoder")
    tokenizer().save_pretrained(tmp_path / "encoder")
    made = make_reward_model(str(tmp_path / "encoder"), tokenizer(), seed=1)
    export_reward_model(made, tokenizer(), tmp_path / "reward", state_dict=dict(made.state_dict()))
    batch = batch_of(sequences([9, 5]))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    with torch.no_grad():
        wanted = stock(batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
        torch.testing.assert_close(
            sequence_scores(load_reward_model(str(tmp_path / "reward")), batch), wanted, atol=1e-6, rtol=0
        )
