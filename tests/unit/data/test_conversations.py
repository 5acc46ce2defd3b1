"""What a chat template takes, what it refuses, and what becomes of a conversation that it would not write whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_lab import tokenize_demonstrations, tokenize_preferences
from tokenizers_lab import CHATML, GEMMA, byte_level, metaspace

from rayrlhf.config import RunConfig, load_config
from rayrlhf.config.data import Reading
from rayrlhf.data.chat import merged
from rayrlhf.data.encoded import settled
from rayrlhf.data.encoding import encode_rows, preference_encoder
from rayrlhf.data.exchange import encode_prompt
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Demonstration, Message, pair
from rayrlhf.data.tokenizer import ids_as_text
from rayrlhf.errors import DataError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As the templates of Gemma and of older Mistral models do.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
) + GEMMA
SILENT = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
CALL = {"id": "a", "type": "function", "function": {"name": "brew", "arguments": {"kind": "green"}}}
BREW = {"role": "tools", "content": json.dumps([{"type": "function", "function": {"name": "brew"}}])}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def written(template: str, prompt: list[Message], **reading: Any) -> str:
    tokenizer = byte_level(template=template)
    return ids_as_text(tokenizer, encode_prompt(tokenizer, prompt, reading=Reading(**reading)))


@pytest.mark.parametrize(
    ("template", "prompt", "reason"),
    [
        (STRICT, [system("Be brief."), user("two")], "the chat template refuses it: "),
        (STRICT, [user("two"), user("four")], "the chat template refuses it: "),
        (SILENT, [system("Be brief."), user("two")], "the chat template leaves out its system message"),
        (CHATML, [BREW, user("two")], "it has tools, which the chat template does not write"),
        (
            CHATML,
            [user("two"), said("", tool_calls=[CALL])],
            "it has tool_calls, which the chat template does not write",
        ),
        (CHATML, [user("a"), said("b", reasoning_content="c"), user("d")], "it has reasoning_content, which"),
        (
            TOOLS,
            [
                user("a"),
                said("", tool_calls=[CALL, {**CALL, "id": "b"}]),
                {"role": "tool", "content": "x", "tool_call_id": "b"},
            ],
            "it has tool_call_id in another order than its tool_calls",
        ),
    ],
)
def test_what_a_template_does_not_write_is_a_bad_row(template: str, prompt: list[Message], reason: str) -> None:
    tokenizer = byte_level(template=template)
    with pytest.raises(UnusableRowError, match=reason):
        encode_prompt(tokenizer, prompt)


def test_tools_and_calls_go_to_a_template_that_takes_them() -> None:
    turns = [BREW, user("two"), said("", tool_calls=[CALL]), {"role": "tool", "content": "four", "tool_call_id": "a"}]
    found = written(TOOLS, turns)
    assert found.startswith('<tools>[{"type": "function", "function": {"name": "brew"}}]</tools><|im_start|>user')
    assert '<call>brew {"kind": "green"}</call>' in found
    assert "<|im_start|>tool\nfour<|im_end|>" in found


def test_roles_that_a_template_does_not_take_are_merged_if_asked() -> None:
    tokenizer = metaspace("first", template=STRICT)
    turns = [system("two"), user("four"), user("two"), said("four"), user("two")]
    with pytest.raises(UnusableRowError, match=r"data\.roles=merge joins turns that it does not take"):
        encode_prompt(tokenizer, turns)
    plain = [user("two\n\nfour\n\ntwo"), said("four"), user("two")]
    assert merged(turns) == plain
    asked = encode_prompt(tokenizer, turns, reading=Reading(roles="merge"))
    assert asked.tolist() == encode_prompt(tokenizer, plain).tolist()
    # A template that takes the roles is given them.
    assert "system\ntwo" in written(CHATML, turns, roles="merge")


def test_plain_prompts_are_a_users_turn_if_asked() -> None:
    tokenizer = byte_level(template=CHATML)
    as_text = ids_as_text(tokenizer, encode_prompt(tokenizer, "two"))
    as_turn = ids_as_text(tokenizer, encode_prompt(tokenizer, "two", reading=Reading(plain_prompts="chat")))
    assert as_text == "two"
    assert as_turn == "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"


def config(*overrides: str) -> RunConfig:
    return load_config(QUICKSTART, ["model.max_length=120", "data.max_prompt_tokens=60", *overrides])


def test_what_other_peoples_code_raises_about_a_row_is_a_bad_row(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = metaspace("first", template=STRICT)
    good = [pair([user(f"two {'four ' * i}")], "two", "four", origin=f"p.jsonl:{i}") for i in range(1, 10)]
    bad = pair([system("two"), user("four")], "two", "four", origin="p.jsonl:10")
    with pytest.raises(
        DataError,
        match=r"1 of 10 rows of the training and held-out rows cannot be used: p\.jsonl:10: the chat template",
    ):
        tokenize_preferences([*good, bad], tokenizer, config())
    assert len(tokenize_preferences([*good, bad], tokenizer, config("data.max_bad_rows=0.1"))) == 9
    assert "p.jsonl:10: the chat template refuses it: System role not supported" in capfd.readouterr().err
    assert len(tokenize_preferences([*good, bad], tokenizer, config("data.roles=merge"))) == 10
    # One bad row of the held-out part is a share of the whole, not of that part.
    allowed = config("data.max_bad_rows=0.1")
    encoder = preference_encoder(tokenizer, allowed)
    accounts = [
        (part, encode_rows(rows, encoder, tokenizer)[1]) for part, rows in (("train", good), ("heldout", [bad]))
    ]
    assert "1 of 10 rows of the training and held-out rows cannot be used" in settled(accounts, allowed)[0]
    with pytest.raises(DataError, match="1 of 1 rows of the training and held-out rows cannot be used"):
        settled(accounts[1:], allowed)
    half = Demonstration(prompt="two", response="half \ud83d", origin="d.jsonl:7")
    with pytest.raises(DataError, match=r"d\.jsonl:7: the tokenizer refuses it"):
        tokenize_demonstrations([half], tokenizer, config())


def test_a_pair_that_is_the_same_once_it_is_cut_is_a_bad_row() -> None:
    tokenizer = byte_level()
    rows = [pair("two four two four", "two", "four", origin="p.jsonl:1")]
    with pytest.raises(DataError, match=r"p\.jsonl:1: cut at 3 tokens a better and a worse response are the same"):
        tokenize_preferences(rows, tokenizer, config("reward.overlong=cut", "reward.max_length=3"))
