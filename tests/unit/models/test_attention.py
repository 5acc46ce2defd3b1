"""Attention features are honoured in all four models, and those that would be dropped are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models_lab import FAMILIES, batch_of, policy_dir, reward_dir, sequences, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rayrlhf.errors import ModelError
from rayrlhf.models.attention import check_attention
from rayrlhf.models.forward import policy_forward, sequence_scores, token_values
from rayrlhf.models.load import load_critic, load_policy, load_reward_model, make_critic, make_policy

CAP = {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 32}


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 2 policy whose attention cap is tight, and a reward model on it."""
    root = tmp_path_factory.mktemp("capped")
    family = FAMILIES["gemma2"]
    FAMILIES["capped"] = family | CAP
    try:
        reward_dir(root / "reward", "capped")
    finally:
        del FAMILIES["capped"]
    return root


def change(directory: Path, **values: Any) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(directory)


def logprobs(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    batch = batch_of(sequences([12, 7]), [3, 2])
    with torch.no_grad():
        return policy_forward(model, batch, temperature=1.0, with_entropy=False, compute_dtype=dtype).logprobs


def test_the_policy_caps_its_attention_as_the_published_model_does(capped: Path) -> None:
    path = str(capped / "reward-base")
    ours = logprobs(load_policy(path))
    eager, dropped = (
        logprobs(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=name).eval())
        for name in ("eager", "sdpa")
    )
    torch.testing.assert_close(ours, eager, atol=1e-6, rtol=0)
    assert (ours - dropped).abs().max() > 0.01
    torch.testing.assert_close(logprobs(AutoModelForCausalLM.from_pretrained(path).eval()), ours, atol=1e-6, rtol=0)
    assert (logprobs(load_policy(path, dtype=torch.bfloat16)) - eager).abs().max() < (ours - dropped).abs().max()


def test_a_made_policy_caps_as_its_export_does(capped: Path) -> None:
    made = make_policy(FAMILIES["gemma2"] | CAP, tokenizer(), seed=0)
    torch.testing.assert_close(logprobs(made), logprobs(load_policy(str(capped / "reward-base"))), atol=1e-6, rtol=0)


def test_reward_model_and_critics_cap_too(capped: Path) -> None:
    path = str(capped / "reward")
    batch = batch_of(sequences([12, 7]))
    stock = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted = stock.eval()(batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
        torch.testing.assert_close(sequence_scores(load_reward_model(path), batch), wanted, atol=1e-5, rtol=0)
        hidden = stock.model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        values = stock.score(hidden)[..., 0]
        ours = token_values(load_critic(path), batch)
        torch.testing.assert_close(ours[:, 1:7], values[:, :6], atol=1e-5, rtol=0)
    assert make_critic(str(capped / "reward-base")).config._attn_implementation == "eager"


def test_models_without_a_cap_keep_their_architectures_choice(tmp_path: Path) -> None:
    assert load_policy(policy_dir(tmp_path / "policy")).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("family", "values", "told"),
    [
        ("qwen2", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0 .* qwen2 does not know"),
        ("qwen2", {"attention_sink_size": 4}, "attention_sink_size=4 .* does not know and would ignore"),
        ("qwen2", {"alibi": True}, "alibi=True .* does not know"),
        ("gpt2", {"sliding_window": 8}, "sliding_window=8 .* gpt2 does not know"),
    ],
)
def test_a_field_that_nothing_honours_is_refused_by_name(
    tmp_path: Path, family: str, values: dict[str, Any], told: str
) -> None:
    path = change(Path(policy_dir(tmp_path / "policy", family)), **values)
    for load in (load_policy, make_critic):
        with pytest.raises(ModelError, match=told):
            load(path)


def test_a_cap_that_the_modelling_code_reads_and_does_not_apply_is_refused() -> None:
    config = AutoConfig.for_model("gemma3_text", attn_logit_softcapping=50.0)
    with pytest.raises(ModelError, match=r"attn_logit_softcapping=50\.0 .* gemma3_text reads and does not apply"):
        check_attention(config, path="x", role="policy")


def test_a_model_that_sees_what_it_is_to_predict_is_refused() -> None:
    config = AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(ModelError, match=r"use_bidirectional_attention=True .* it sees the tokens it is to predict"):
        check_attention(config, path="x", role="policy")


@pytest.mark.parametrize(
    "values",
    [
        {"sliding_window": None, "attention_bias": False, "use_sliding_window": False, "use_flash_attention_2": True},
        {
            "attention_dropout": 0.1,
            "layer_types": ["full_attention", "full_attention"],
            "_attn_implementation": "eager",
        },
    ],
)
def test_fields_that_change_nothing_are_no_reason(tmp_path: Path, values: dict[str, Any]) -> None:
    load_policy(change(Path(policy_dir(tmp_path / "policy", "gpt2")), **values))


@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_architecture_as_transformers_makes_it_is_known(model_type: str) -> None:
    if model_type.startswith("musicgen"):
        pytest.skip("has no configuration of its own")
    check_attention(CONFIG_MAPPING[model_type](), path="x", role="policy")
