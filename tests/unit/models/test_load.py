"""Making and loading the four models, and every way a directory can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models_lab import FAMILIES, batch_of, policy_dir, policy_model, reward_dir, sequences, tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.export import export_model
from rayrlhf.models.forward import sequence_scores, token_values
from rayrlhf.models.heads import scalar_head
from rayrlhf.models.load import (
    check_model_dir,
    load_critic,
    load_policy,
    load_reward_model,
    make_policy,
    make_reward_model,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy directory and the reward model made of it; tests change copies."""
    root = tmp_path_factory.mktemp("models")
    reward_dir(root / "reward")
    return root


def copy_of(source: Path, target: Path, **config: Any) -> Path:
    """The model directory with some configuration values changed."""
    shutil.copytree(source, target)
    edit_json(target / "config.json", lambda values: values.update(config))
    return target


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def drop_weights(directory: Path, *names: str) -> None:
    weights = load_file(directory / "model.safetensors")
    for name in names:
        del weights[name]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


# -- making a policy ----------------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (policy_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_made_policy_fits_its_tokenizer() -> None:
    model = policy_model("qwen2-tied")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (tokenizer().pad_token_id, tokenizer().eos_token_id)


def test_init_is_not_consumed() -> None:
    init = dict(FAMILIES["qwen2"])
    make_policy(init, tokenizer(), seed=0)
    assert init == FAMILIES["qwen2"]


@pytest.mark.parametrize(
    "change", [{"model_type": "quen2"}, {"hidden_size": "wide"}, {"hidden_act": "gulu"}, {"model_type": "t5"}]
)
def test_an_impossible_init_is_a_model_error(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"No model can be made from model\.init=\{.*\}: .+\.$"):
        make_policy(FAMILIES["qwen2"] | change, tokenizer(), seed=0)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_dropout_is_off_even_in_training_mode(tmp_path: Path, family: str) -> None:
    dropout = (
        {"attention_dropout": 0.5} if family == "qwen2" else {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
    )
    path = reward_dir(tmp_path / "reward", family)
    for directory in (tmp_path / "reward", tmp_path / "reward-base"):
        edit_json(directory / "config.json", lambda values: values.update(dropout))
    made = policy_model(family, **dropout)
    batch = batch_of(sequences([9, 5]))
    for model in (made, load_policy(str(tmp_path / "reward-base")), load_reward_model(path), load_critic(path)):
        model.train()
        outputs = [model(batch.input_ids, attention_mask=batch.attention_mask).logits for _ in range(2)]
        assert torch.equal(*outputs), type(model).__name__


# -- loading a policy ---------------------------------------------------------------------------------------------------


def test_a_policy_loads_in_the_asked_precision(good: Path) -> None:
    path = str(good / "reward-base")
    assert {p.dtype for p in load_policy(path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_policy(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/model", "~/model", "runs/x/sft", "models/"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_name(path: str) -> None:
    with pytest.raises(ModelError, match=rf"^The policy directory {path} does not exist\.$"):
        load_policy(path)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B"])
def test_hub_names_are_left_to_the_loader(name: str) -> None:
    check_model_dir(name, role="policy")


def test_a_directory_without_configuration_or_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"The policy directory .*empty holds no config\.json\."):
        (tmp_path / "empty").mkdir()
        load_policy(str(tmp_path / "empty"))
    path = policy_dir(tmp_path / "policy")
    (tmp_path / "policy" / "model.safetensors").unlink()
    for load in (load_policy, load_reward_model, load_critic):
        with pytest.raises(ModelError, match=rf"directory {path} holds no weights"):
            load(path)
    with pytest.raises(ModelError, match=rf"The reward model backbone directory {path} holds no weights"):
        make_reward_model(path, tokenizer(), seed=0)


def test_a_policy_that_lacks_a_weight_is_not_filled_up_with_random_ones(good: Path, tmp_path: Path) -> None:
    path = copy_of(good / "reward-base", tmp_path / "policy")
    drop_weights(path, "lm_head.weight", "model.norm.weight")
    with pytest.raises(
        ModelError, match=rf"The policy {path} lacks the weights lm_head\.weight, model\.norm\.weight\."
    ):
        load_policy(str(path))


def test_weights_of_another_shape_are_a_model_error(good: Path, tmp_path: Path) -> None:
    path = copy_of(good / "reward-base", tmp_path / "policy", vocab_size=300)
    with pytest.raises(ModelError, match=rf"The policy {path} cannot be loaded: .*\.$"):
        load_policy(str(path))


def test_damaged_files_are_model_errors(good: Path, tmp_path: Path) -> None:
    path = copy_of(good / "reward-base", tmp_path / "cut")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=rf"The policy {path} cannot be loaded: .*\.$"):
        load_policy(str(path))
    path = copy_of(good / "reward-base", tmp_path / "broken")
    (path / "config.json").write_text('{"model_type": "qwen2",')
    with pytest.raises(ModelError, match=rf"The policy {path} has no usable config\.json: .*\.$"):
        load_policy(str(path))


# -- reward models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "gpt2", "gemma2"])
def test_a_reward_model_is_packaged_for_stock_tools(tmp_path: Path, family: str) -> None:
    path = reward_dir(tmp_path / "reward", family)
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] == tokenizer().pad_token_id != config["eos_token_id"] == tokenizer().eos_token_id
    assert (tmp_path / "reward" / "model.safetensors").is_file()

    batch = batch_of(sequences([9, 4, 12]), pad_id=tokenizer().pad_token_id)
    stock = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        wanted = stock(batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
        scores = sequence_scores(load_reward_model(path), batch)
    torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=0)


def test_the_stock_pipeline_gives_the_raw_score(good: Path) -> None:
    path = str(good / "reward")
    text = "an inn by the road"
    [result] = pipeline("text-classification", model=path, tokenizer=path, device="cpu")(text)
    row = torch.tensor(tokenizer()(text).input_ids).numpy()
    with torch.no_grad():
        score = float(sequence_scores(load_reward_model(path), batch_of([row])))
    assert result["label"] == "reward"
    assert result["score"] == pytest.approx(score, abs=1e-5)


def test_the_head_is_drawn_wide_and_from_the_seed_alone(tmp_path: Path) -> None:
    base = policy_dir(tmp_path / "base", hidden_size=1024, num_attention_heads=2, intermediate_size=32)
    before = torch.get_rng_state()
    first, again, other = (make_reward_model(base, tokenizer(), seed=seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # The deviation of 1024 draws has a relative error of about 1 / sqrt(2 * 1024).
    assert float(first.detach().std()) == pytest.approx(1025**-0.5, rel=0.1)


def test_the_backbone_of_a_reward_model_must_be_whole(good: Path, tmp_path: Path) -> None:
    path = copy_of(good / "reward-base", tmp_path / "base")
    drop_weights(path, "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"backbone .* lacks the weights model\.layers\.1\.mlp\.up_proj\.weight\."):
        make_reward_model(str(path), tokenizer(), seed=0)


def test_a_tokenizer_that_pads_with_its_end_token_makes_no_reward_model(good: Path) -> None:
    same = train_tokenizer(["an inn by the road"], vocab_size=260)
    same.pad_token = same.eos_token
    with pytest.raises(ModelError, match="needs a pad token of its own"):
        make_reward_model(str(good / "reward-base"), same, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "gives 2 labels; a reward model gives 1 score"),
        (
            {"pad_token_id": 1, "eos_token_id": 1},
            "has pad_token_id 1 and eos_token_id 1: .*give it a pad token of its own",
        ),
        ({"pad_token_id": 1, "eos_token_id": [3, 1]}, r"has pad_token_id 1 and eos_token_id \[3, 1\]"),
        ({"pad_token_id": None}, "has pad_token_id None"),
    ],
)
def test_an_ambiguous_reward_model_is_refused(good: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = str(copy_of(good / "reward", tmp_path / "reward", **config))
    for load in (load_reward_model, load_critic):
        with pytest.raises(ModelError, match=f"The reward model {path} {message}"):
            load(path)


def test_a_newly_initialised_head_is_refused(good: Path, tmp_path: Path) -> None:
    path = copy_of(good / "reward", tmp_path / "reward")
    drop_weights(path, "score.weight")
    for load in (load_reward_model, load_critic):
        with pytest.raises(ModelError, match=r"lacks the weights score\.weight: it is not a trained reward model\."):
            load(str(path))


# -- the critic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "gpt2", "gemma2"])
def test_a_critic_is_a_stock_token_classifier_that_starts_as_the_reward_model(tmp_path: Path, family: str) -> None:
    path = reward_dir(tmp_path / "reward", family)
    critic = load_critic(path)
    head = scalar_head(critic)
    assert torch.equal(head.weight, scalar_head(load_reward_model(path)).weight)
    assert head.bias is not None
    assert not head.bias.any()
    assert {p.dtype for p in critic.parameters()} == {torch.float32}
    assert all(module.p == 0.0 for module in critic.modules() if isinstance(module, torch.nn.Dropout))

    export_model(critic, tokenizer(), tmp_path / "critic")
    stock = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").train()
    batch = batch_of(sequences([9, 4]))
    with torch.no_grad():
        after = stock(batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
        values = token_values(critic, batch)
    torch.testing.assert_close(values[:, 1:] * batch.attention_mask[:, 1:], after[:, :-1] * batch.attention_mask[:, 1:])
    assert values.std() > 1e-2
