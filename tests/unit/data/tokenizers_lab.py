"""Tokenizers of the kinds that public models have, made on the spot."""

from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rayrlhf.data.tokenizer import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As in some public models the tokens of a turn are added ones that the tokenizer does not call special.
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
    "{{ m.content }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
CONTROLS = {
    CHATML: ["<|im_start|>", "<|im_end|>"],
    LLAMA3: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    GEMMA: ["<start_of_turn>", "<end_of_turn>"],
    TURNS: ["<|eot_id|>"],
}
WORDS = "what is two plus two ? it is four . It user assistant system be rude model héllo".split()  # noqa: SIM905


def metaspace(
    scheme: Literal["first", "always", "normalizer"],
    *,
    template: str | None = None,
    split: bool = False,
    add_bos: bool = True,
) -> PreTrainedTokenizerFast:
    """Llama-like: a space is a mark before a word, also before the first of a text; other characters are bytes.

    `normalizer` is the form of older ones, which mark every part of a text between control tokens.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges: list[tuple[str, str]] = []
    for character in sorted({c for word in WORDS if word.isascii() for c in word} | {"▁", "\n"}):
        vocab[character] = len(vocab)
    for word in (word for word in WORDS if word.isascii()):
        for left in ("▁", ""):
            made = left
            for character in word:
                if made and made + character not in vocab:
                    merges.append((made, character))
                    vocab[made + character] = len(vocab)
                made += character
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    if scheme == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=[
            "<answer>",
            "</answer>",
            *(CONTROLS.get(template, CONTROLS[CHATML]) if template else []),
        ],
        chat_template=template,
    )


def byte_level(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """GPT-like, without a mark at the beginning of a text, with an optional template and its control tokens."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([" ".join(WORDS)] * 4, vocab_size=400).backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        additional_special_tokens=[
            "<answer>",
            "</answer>",
            *(CONTROLS.get(template, CONTROLS[CHATML]) if template else []),
        ],
        chat_template=template,
    )
    if template == TURNS:
        tokenizer.add_tokens(
            [AddedToken(text, special=False, normalized=False) for text in ("<|User|>", "<|Assistant|>")]
        )
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer
