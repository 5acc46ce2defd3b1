"""What a start says of its data, and what it refuses, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.config import RunConfig, load_config
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import DataError, ModelError
from rayrlhf.models.load import make_policy
from rayrlhf.pipelines.data_checks import DataCheck, FoundData

WORDS = "red blue green small large cat dog house tree river".split()  # noqa: SIM905
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    make_policy(SHAPE, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def config(model: Path, root: Path, *overrides: str) -> RunConfig:
    (root / "c.yaml").write_text(
        f"stages: [reward]\nmodel: {{path: {model}, max_length: 64}}\n"
        f"data: {{root: {root}, cache: {root}/cache, preferences: {{path: p.jsonl, format: preferences}}, "
        "max_prompt_tokens: 40}\n"
        "sampling: {max_new_tokens: 16}\nwandb: {mode: disabled}\n"
    )
    return load_config(root / "c.yaml", overrides)


def found(model: Path, root: Path, rows: list[dict[str, Any]], *overrides: str) -> FoundData:
    (root / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataCheck(config=config(model, root, *overrides), policy_dir=None).run()["reward"]


def pairs(**more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{a} {b}", "chosen": "red", "rejected": "blue", **more} for a in WORDS for b in WORDS]


def test_a_start_tells_the_form_the_columns_the_split_and_an_example(model: Path, tmp_path: Path) -> None:
    rows = pairs(source="web", confidence=0.8)
    told = found(model, tmp_path, rows).sentences()
    assert told[0] == (
        "data for reward: p.jsonl: 100 rows, chosen and rejected beside a prompt. Columns used: chosen, prompt, rejected; "
        "ignored: confidence, source."
    )
    assert told[1].endswith("held out, by prompt.")
    assert "are read as they stand, without the chat template" in told[2]
    assert "red<|endoftext|>" in told[-1]
    as_chat = found(model, tmp_path, rows, "data.plain_prompts=chat").sentences()
    assert "each is written as a user's turn with the chat template" in as_chat[2]
    assert as_chat[-1].endswith("<|im_end|>\\n<|im_start|>assistant\\nred<|im_end|>\\n'")


def test_what_the_loss_cannot_learn_from_is_told_or_refused(model: Path, tmp_path: Path) -> None:
    rows = pairs()
    for row in rows[:30]:
        row["margin"] = 1.0
    told = found(model, tmp_path, rows, "reward.loss.kind=scaled").sentences()
    assert "learns nothing from 70 of 100 records, which have no ranking with a margin above 0" in told[1]
    with pytest.raises(DataError, match=r"reward\.loss\.kind=scaled learns nothing from p\.jsonl: no record has"):
        found(model, tmp_path, pairs(), "reward.loss.kind=scaled")
    with pytest.raises(DataError, match=r"All 100 records of p\.jsonl have a weight of 0"):
        found(model, tmp_path, pairs(weight=0.0))


def test_the_example_is_shown_as_each_backbone_reads_it(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = train_tokenizer(["red"], vocab_size=270)
    make_policy(SHAPE, tokenizer, seed=1).save_pretrained(other)
    tokenizer.eos_token = "<|end|>"
    tokenizer.save_pretrained(other)
    told = found(model, tmp_path, pairs(), f"reward.base=[{model}, {other}, {model}]").sentences()
    assert sum("reads the example below as" in sentence for sentence in told) == 1
    assert told[-1].endswith("red<|endoftext|>'")
    shown = told[-1].removeprefix("for example: ").replace("<|endoftext|>", "<|end|>")
    assert told[-2] == f"{other} reads the example below as {shown}"
    chat = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in pairs()]
    with pytest.raises(ModelError, match=rf"{other} cannot read the data: .* no chat template"):
        found(model, tmp_path, chat, f"reward.base=[{model}, {other}]")
