import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rayrlhf.data.exchange import encode_prompt, encode_response
from rayrlhf.data.tokenizer import load_tokenizer, prompt_as_text, train_tokenizer
from rayrlhf.errors import ModelError

TEXTS = ["The soup was cold.", " We will warm the soup for you.", "Guest: The soup was cold.\nHost:"] * 4
TOKENIZER = train_tokenizer(TEXTS, vocab_size=320)
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    ids = encode_response(TOKENIZER, text)
    assert ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(ids[:-1]) == unicodedata.normalize("NFC", text.encode(errors="ignore").decode())


def test_it_loads_as_any_tokenizer_does(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded.pad_token_id != loaded.eos_token_id
        assert loaded("The soup was cold.").input_ids == TOKENIZER("The soup was cold.").input_ids


def test_a_response_goes_on_where_its_prompt_ends() -> None:
    prompt, response = "Guest: The soup was cold.\nHost:", " We will warm the soup for you."
    together = [*encode_prompt(TOKENIZER, prompt), *encode_response(TOKENIZER, response)]
    assert together == [*TOKENIZER(prompt + response).input_ids, TOKENIZER.eos_token_id]


def test_a_prompt_never_ends_the_sequence(tmp_path: Path) -> None:
    closing = train_tokenizer(TEXTS, vocab_size=320)
    from tokenizers.processors import TemplateProcessing

    closing.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    assert closing("soup").input_ids[-1] == 1
    assert encode_prompt(closing, "soup")[-1] != 1


def test_chat_messages_are_written_by_the_template() -> None:
    chat = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT
    )
    messages = [{"role": "user", "content": "The soup was cold."}]
    assert chat.decode(encode_prompt(chat, messages)) == "<user>The soup was cold.<assistant>"
    assert prompt_as_text(messages) == "user: The soup was cold."
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(TOKENIZER, messages)


def test_a_tokenizer_that_cannot_pad_or_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))
    endless = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="<pad>")
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path / "endless"))
    same = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="<eos>", eos_token="<eos>")
    same.save_pretrained(tmp_path / "same")
    with pytest.raises(ModelError, match="no special token besides its end token"):
        load_tokenizer(str(tmp_path / "same"))
