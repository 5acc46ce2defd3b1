"""Tokenizers: trained in the run or loaded, and the one way text becomes token ids."""

from collections.abc import Iterable

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rayrlhf.data.schema import PromptText
from rayrlhf.errors import ModelError

# Beside a Qwen2 model transformers rebuilds any byte-level BPE tokenizer with Qwen2's word splitting, normalisation and
# end token, whatever was saved. A tokenizer that has these from the start is the same everywhere.
PAD, EOS = "<pad>", "<|endoftext|>"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016) with distinct padding and end tokens, and no BOS.

    Any text in normal form C can be encoded and decoded back. The vocabulary is smaller than `vocab_size` where the
    texts are few.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; ModelError without one, without an end token, or with no other token to pad."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"No tokenizer can be loaded from {path}: {first}.") from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token  # of an encoder, whose separator ends every text
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of {path} has no end-of-sequence token, which ends every response.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        candidates = [t for t in tokenizer.all_special_ids if t != tokenizer.eos_token_id]
        if not candidates:
            raise ModelError(
                f"The tokenizer of {path} has no special token besides its end token to pad with: add a pad token to it."
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(candidates[0])
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: PromptText) -> np.ndarray:
    """Ids [P] of a prompt, with the special tokens its tokenizer or chat template puts before a response.

    An encoder's separator stays between prompt and response, as between the two texts of a pair.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt).input_ids
        if ids and ids[-1] == tokenizer.eos_token_id and tokenizer.cls_token_id is None:
            ids = ids[:-1]
    else:
        if tokenizer.chat_template is None:
            raise ModelError("The prompts are chat messages and the tokenizer has no chat template to write them with.")
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    return np.asarray(ids, dtype=np.int32)


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> np.ndarray:
    """Ids [R] of a response, its end token included."""
    ids = tokenizer(response, add_special_tokens=False).input_ids
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32)


def prompt_as_text(prompt: PromptText) -> str:
    """A prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
