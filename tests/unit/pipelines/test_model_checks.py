"""The models of a run are held against their roles, stage by stage."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from rayrlhf.config import RunConfig, parse_config
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.pipelines.model_checks import check_engine_limits, check_models

INIT: dict[str, Any] = {
    "model_type": "cohere",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def config(stages: list[str], model: dict[str, Any], **sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "name": "checked",
        "stages": stages,
        "model": model | {"max_length": 32},
        "data": {"task": {"name": "innkeeper"}, "max_prompt_tokens": 8},
        "sampling": {"max_new_tokens": 8},
    }
    return parse_config(tree | sections)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "policy"
    tokenizer = train_tokenizer(["an inn by the road"], vocab_size=260)
    export_model(make_policy(INIT, tokenizer, seed=0), tokenizer, directory)
    return str(directory)


def test_each_stage_is_told_what_it_writes(policy: str) -> None:
    def notes(*stages: str, **sections: Any) -> list[str]:
        return [note.split()[3] for note in check_models(config(list(stages), {"path": policy}, **sections))]

    assert notes("sft") == []
    assert notes("reward") == ["AutoModelForSequenceClassification"]
    assert notes("sft", "reward", "ppo") == [
        "AutoModelForTokenClassification",
        "AutoModelForSequenceClassification",
    ]
    assert notes("sft", "reward", "ppo", ppo={"advantage": "grpo"}) == ["AutoModelForSequenceClassification"]


def test_a_made_model_is_checked_before_it_is_made() -> None:
    made = {"init": INIT, "vocab_size": 260}
    assert len(check_models(config(["sft", "reward", "ppo"], made))) == 2
    with pytest.raises(ModelError, match=r"attn_logit_softcapping=30\.0"):
        check_models(config(["sft"], {"init": INIT | {"attn_logit_softcapping": 30.0}, "vocab_size": 260}))


def test_the_engines_limits_hold_for_the_stage_that_samples() -> None:
    small = {"init": INIT | {"num_attention_heads": 4}, "vocab_size": 260}
    check_engine_limits(config(["sft"], small), device="cpu")
    with pytest.raises(ModelError, match=r"the model of model\.init has heads of 16"):
        check_engine_limits(config(["sft", "reward", "ppo"], small), device="cpu")


def test_a_judge_that_never_says_a_is_told_to_write(policy: str, tmp_path: Path) -> None:
    alphabet = tokenizers.Tokenizer(tokenizers.models.WordLevel({"inn": 0, "<pad>": 1, "</s>": 2}, unk_token="inn"))
    words = PreTrainedTokenizerFast(tokenizer_object=alphabet, pad_token="<pad>", eos_token="</s>")
    export_model(make_policy(INIT, words, seed=0), words, tmp_path / "judge")
    judge = {"kind": "judge", "principles": "be brief", "path": str(tmp_path / "judge"), "max_length": 64}
    with pytest.raises(ModelError, match=r"judge .*judge has no token for the answer A: set verdict: text\."):
        check_models(config(["ppo"], {"path": policy}, ppo={"rewards": [judge]}))
    check_models(config(["ppo"], {"path": policy}, ppo={"rewards": [judge | {"verdict": "text"}]}))


def test_the_engine_of_a_judge_has_limits_too(policy: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["an inn by the road"], vocab_size=260)
    export_model(make_policy(INIT | {"num_attention_heads": 4}, tokenizer, seed=0), tokenizer, tmp_path / "judge")
    judge = {"kind": "judge", "principles": "be brief", "path": str(tmp_path / "judge"), "max_length": 64}
    with pytest.raises(ModelError, match=r"the judge .*judge has heads of 16"):
        check_engine_limits(config(["ppo"], {"path": policy}, ppo={"rewards": [judge]}), device="cpu")


def test_reward_models_of_other_directories_are_checked_too(policy: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["an inn by the road"], vocab_size=260)
    made = make_reward_model(policy, tokenizer, seed=0)
    made.config.pad_token_id = None
    export_reward_model(made, tokenizer, tmp_path / "reward", state_dict=dict(made.state_dict()))
    rewards = {"rewards": [{"kind": "model", "path": str(tmp_path / "reward")}]}
    with pytest.raises(ModelError, match=r"The reward model .* has pad_token_id None"):
        check_models(config(["ppo"], {"path": policy}, ppo=rewards))


def test_every_backbone_of_an_ensemble_is_looked_for(policy: str) -> None:
    check_models(config(["reward"], {"path": policy}, reward={"base": [policy, policy]}))
    with pytest.raises(ModelError, match=r"The reward model backbone directory /no/such/base does not exist"):
        check_models(config(["reward"], {"path": policy}, reward={"base": [policy, "/no/such/base"]}))
