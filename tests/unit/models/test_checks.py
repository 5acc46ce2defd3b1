"""What is wrong with a model is said before anything starts."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models_lab import FAMILIES, policy_dir, policy_model, reward_dir, tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from rayrlhf.errors import ModelError
from rayrlhf.models.checks import check_backbone, check_init, check_policy, check_scorer, positions
from rayrlhf.models.export import export_model
from rayrlhf.models.load import load_policy


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return Path(policy_dir(tmp_path / "policy"))


def edit(directory: Path, file: str, **values: Any) -> Path:
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


def check(directory: Path, *, max_length: int = 32, with_critic: bool = True, **tokens: Any) -> list[str]:
    return check_policy(
        str(directory), tokens.get("tokenizer", tokenizer()), max_length=max_length, with_critic=with_critic
    )


def padded() -> Any:
    """A tokenizer whose pad token was added after the embeddings were made."""
    own = copy.deepcopy(tokenizer())
    own.add_special_tokens({"pad_token": "<new pad>"})
    return own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_model_passes(tmp_path: Path, family: str) -> None:
    path = policy_dir(tmp_path / "policy", family)
    notes = check_policy(path, tokenizer(), max_length=64, with_critic=True)
    assert [note.split(":")[0] for note in notes] == (
        [f"transformers has no AutoModelForTokenClassification for {family}"] if family in ("granite", "cohere") else []
    )
    assert not list(tmp_path.glob("policy/../.*"))


def test_sampling_defaults_that_cannot_be_written_are_left_out_with_a_note(policy: Path, tmp_path: Path) -> None:
    edit(policy, "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6, eos_token_id=[1, 5])
    [note] = check(policy)
    assert "sampling defaults in generation_config.json" in note
    assert "temperature" in note
    assert not note.endswith(":")
    export_model(load_policy(str(policy)), tokenizer(), tmp_path / "written")
    assert GenerationConfig.from_pretrained(tmp_path / "written").eos_token_id == [1, 5]
    AutoModelForCausalLM.from_pretrained(tmp_path / "written").save_pretrained(tmp_path / "again")


def test_valid_sampling_defaults_are_kept(policy: Path, tmp_path: Path) -> None:
    edit(policy, "generation_config.json", do_sample=True, temperature=0.9, top_p=0.6)
    assert check(policy) == []
    export_model(load_policy(str(policy)), tokenizer(), tmp_path / "written")
    assert GenerationConfig.from_pretrained(tmp_path / "written").temperature == 0.9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"file": "config.json", "vocab_size": 300},
            r"has embeddings \[260, 64\] and its config\.json says \[300, 64\]",
        ),
        ({"file": "config.json", "pad_token_id": 260}, "pad_token_id 260 and there are 260 embeddings"),
        ({"file": "generation_config.json", "eos_token_id": [1, 999]}, "ends responses at token 999"),
        ({"file": "config.json", "num_attention_heads": 4, "num_key_value_heads": 3}, "4 attention heads for 3 key"),
        ({"file": "config.json", "attention_sink": 4}, "attention_sink=4"),
        ({"file": "config.json", "hidden_act": "loud"}, r"cannot be made: .*loud"),
        ({"file": "config.json", "model_type": "t5"}, "cannot be a policy: transformers has no causal"),
        ({"file": "config.json", "model_type": "bert"}, "is an encoder"),
    ],
)
def test_a_directory_that_could_not_be_trained_is_refused(policy: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        check(edit(policy, **change))


def test_lengths_beyond_the_positions_are_refused(policy: Path) -> None:
    assert check(policy, max_length=64) == []
    with pytest.raises(ModelError, match=r"model\.max_length=65 exceeds the 64 positions of the policy .*: lower it"):
        check(policy, max_length=65)


@pytest.mark.parametrize(
    ("model_type", "values", "length"),
    [
        ("llama", {"max_position_embeddings": 64}, 64),
        ("gpt2", {"n_positions": 48}, 48),
        ("mpt", {"max_seq_len": 40}, 40),
        ("bloom", {}, None),
        ("roberta", {"max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ("llama", {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 256),
        (
            "qwen2",
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            },
            64,
        ),
    ],
)
def test_positions_are_counted_as_vllm_counts_them(model_type: str, values: dict[str, Any], length: int | None) -> None:
    assert positions(AutoConfig.for_model(model_type, **values)) == length


def test_a_tokenizer_beyond_the_embeddings_is_refused(policy: Path) -> None:
    for own in (
        lambda: check(policy, tokenizer=padded()),
        lambda: check_backbone(str(policy), padded(), max_length=32),
    ):
        with pytest.raises(
            ModelError, match=r"gives ids up to 260 \(its pad token\) and there are 260 embeddings: resize"
        ):
            own()


def test_padded_embeddings_pass_and_their_ids_can_be_read(tmp_path: Path) -> None:
    model = policy_model()
    model.resize_token_embeddings(320)
    export_model(model, tokenizer(), tmp_path / "policy")
    assert check(tmp_path / "policy") == []
    assert tokenizer().decode([5, 319]) == tokenizer().decode([5])


def test_the_backbone_of_a_reward_model_is_held_to_its_own_limits(tmp_path: Path) -> None:
    own = AutoConfig.for_model(
        "roberta",
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    AutoModel.from_config(own).save_pretrained(tmp_path / "encoder")
    assert check_backbone(str(tmp_path / "encoder"), tokenizer(), max_length=32) == []
    with pytest.raises(ModelError, match="max_length=33 exceeds the 32 positions of the reward model backbone"):
        check_backbone(str(tmp_path / "encoder"), tokenizer(), max_length=33)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: edit(path, "config.json", pad_token_id=260), "pad_token_id 260 .* 260 embeddings"),
        (lambda path: edit(path, "config.json", n_positions=16, n_ctx=16), "max_length=32 exceeds the 16 positions"),
        (lambda path: edit(path, "config.json", attention_sink=4), "attention_sink=4"),
    ],
)
def test_a_reward_model_that_could_not_score_is_refused(
    tmp_path: Path, change: Callable[[Path], Any], told: str
) -> None:
    path = Path(reward_dir(tmp_path / "reward", "gpt2"))
    check_scorer(str(path), max_length=32)
    change(path)
    with pytest.raises(ModelError, match=told):
        check_scorer(str(path), max_length=32)


def test_a_model_that_is_made_in_the_run_is_checked_without_being_made() -> None:
    config = AutoConfig.for_model(**FAMILIES["cohere"], vocab_size=10**6, pad_token_id=0)
    before = torch.get_rng_state()
    notes = check_init(config, stages=["reward", "ppo"], with_critic=True)
    assert [note.split()[3] for note in notes] == [
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    ]
    assert torch.equal(before, torch.get_rng_state())
