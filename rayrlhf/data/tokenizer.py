"""Tokenizers, trained in the run or loaded; token ids as text, and prompts as people read them."""

import itertools
from collections.abc import Iterable, Sequence

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

NEUTRAL = ("\n", ":", "?", "a")
"""Texts to stand before a response where its prompt's end would change with it."""


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


def ids_as_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> str:
    """The text of a whole sequence, its special tokens written out."""
    return str(tokenizer.decode(list(map(int, ids)), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def response_as_text(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: np.ndarray, response_ids: np.ndarray, *, finished: bool
) -> str:
    """What a response adds to its prompt: all of it but the end token, if it is `finished`, and end and padding tokens.

    Decoded by itself it could lose a space at its beginning. A character that was cut in two is shown as U+FFFD.
    """
    kept = response_ids[:-1] if finished else response_ids
    extra = set(tokenizer.convert_tokens_to_ids(list(tokenizer.extra_special_tokens)))
    silent = {tokenizer.eos_token_id, tokenizer.pad_token_id} - extra
    ids = [int(number) for number in kept if number not in silent]
    neutral = (tokenizer(text, add_special_tokens=False).input_ids for text in NEUTRAL)
    for before in itertools.chain([[int(number) for number in prompt_ids]], neutral):
        head, whole = ids_as_text(tokenizer, before), ids_as_text(tokenizer, [*before, *ids])
        if whole.startswith(head):
            return whole[len(head) :]
    return ids_as_text(tokenizer, ids)


def prompt_as_text(prompt: PromptText) -> str:
    """A prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def exchange_as_text(prompt: PromptText, response: str) -> str:
    """A prompt and its response in one text, as a person reads it."""
    return prompt + response if isinstance(prompt, str) else f"{prompt_as_text(prompt)}\nassistant: {response}"
