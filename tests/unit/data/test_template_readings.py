"""A reward model reads what `apply_chat_template` writes; a policy goes on from the opening and ends where the template ends."""

import json

import numpy as np
import pytest
from tokenizers_lab import CHATML, GEMMA, LLAMA3, WORDS
from transformers import PreTrainedTokenizerFast

from rayrlhf.config.data import Reading
from rayrlhf.data.exchange import (
    encode_exchange,
    encode_judged,
    encode_prompt,
    end_of_turn,
    judged_prompt_length,
)
from rayrlhf.data.schema import Message
from rayrlhf.data.tokenizer import ids_as_text, train_tokenizer

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
)
# The end token stands behind a finished conversation alone.
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# A response begins with a thought that a finished conversation does not show.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# An empty thought stands before every last response.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}" + CHATML
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "phi": PHI,
    "deepseek": DEEPSEEK,
    "qwen3": QWEN3,
    "tools": TOOLS,
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "<|endoftext|>",
    "phi": "<|end|>",
    "deepseek": "<|endoftext|>",
    "qwen3": "<|im_end|>",
    "tools": "<|im_end|>",
}
CONTROLS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|User|>", "<|Assistant|>"),
    *("[INST]", "[/INST]", "<think>", "</think>"),
]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


PROMPTS: dict[str, list[Message]] = {
    "one turn": [user("what is two ?")],
    "system": [{"role": "system", "content": "It is four"}, user("what is two ?")],
    "several turns": [user("two"), said("four"), user("what is it ?")],
}
BREW = [{"type": "function", "function": {"name": "brew", "description": "two plus"}}]


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([" ".join(WORDS)] * 4, vocab_size=400).backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        additional_special_tokens=CONTROLS,
        chat_template=template,
    )


@pytest.mark.parametrize("turns", PROMPTS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reward_model_reads_the_templates_own_text(name: str, turns: str) -> None:
    tokenizer, prompt = tokenizer_with(TEMPLATES[name]), PROMPTS[turns]
    responses = [" It is four . ", "two\ntwo", "It"]
    stock = [tokenizer.apply_chat_template([*prompt, said(text)], return_dict=False) for text in responses]
    found = encode_judged(tokenizer, prompt, responses)
    assert [ids.tolist() for ids in found] == stock
    # rewardbench writes the text first and reads that.
    texts = [tokenizer.apply_chat_template([*prompt, said(text)], tokenize=False) for text in responses]
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in texts] == stock
    before = judged_prompt_length(tokenizer, prompt)
    assert ids_as_text(tokenizer, found[1][before:]).lstrip(" ").startswith("two\ntwo")


@pytest.mark.parametrize("turns", PROMPTS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_policys_response_ends_as_the_template_ends_a_turn(name: str, turns: str) -> None:
    tokenizer, prompt = tokenizer_with(TEMPLATES[name]), PROMPTS[turns]
    opening = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    ids, (response, again) = encode_exchange(tokenizer, prompt, ["It is four", "It is four" + ENDS[name]])
    assert ids.tolist() == encode_prompt(tokenizer, prompt).tolist() == opening
    assert tokenizer.convert_ids_to_tokens(int(response[-1])) == ENDS[name]
    assert end_of_turn(tokenizer) == response[-1]
    assert again.tolist() == response.tolist()
    text = ids_as_text(tokenizer, response)
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert text.lstrip(" ") == f"{thought}It is four{ENDS[name]}"


def test_a_response_that_was_cut_is_read_without_an_end() -> None:
    tokenizer = tokenizer_with(CHATML)
    (whole,), (cut,) = (
        encode_judged(tokenizer, PROMPTS["system"], ["It is"], finished=finished) for finished in (True, False)
    )
    assert whole[: len(cut)].tolist() == cut.tolist()
    assert ids_as_text(tokenizer, whole[len(cut) :]) == "<|im_end|>\n"


def test_tools_stand_where_the_template_puts_them() -> None:
    tokenizer = tokenizer_with(TOOLS)
    prompt = [{"role": "tools", "content": json.dumps(BREW)}, *PROMPTS["system"]]
    (found,) = encode_judged(tokenizer, prompt, ["It is four"])
    turns = [*PROMPTS["system"], said("It is four")]
    assert found.tolist() == tokenizer.apply_chat_template(turns, tools=BREW, return_dict=False)


def test_plain_texts_are_read_with_the_end_token_behind_them() -> None:
    tokenizer = tokenizer_with(CHATML)
    prompt, (response,) = encode_exchange(tokenizer, "what is two ?", [" It is four"])
    (judged,) = encode_judged(tokenizer, "what is two ?", [" It is four"])
    assert judged.tolist() == np.concatenate([prompt, response]).tolist()
    assert judged[-1] == tokenizer.eos_token_id
    as_chat = Reading(plain_prompts="chat")
    (turn,) = encode_judged(tokenizer, "what is two ?", ["It is four"], reading=as_chat)
    assert turn.tolist() == encode_judged(tokenizer, PROMPTS["one turn"], ["It is four"])[0].tolist()
