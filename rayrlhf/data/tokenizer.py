"""Tokenizers: trained in the run or loaded, the one way text becomes token ids, and these become text."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rayrlhf.config.data import Reading
from rayrlhf.data.chat import write_conversation
from rayrlhf.data.schema import PromptText
from rayrlhf.data.special_tokens import (
    Part,
    control_strings,
    encode_parts,
    parse,
    parse_messages,
)
from rayrlhf.errors import ModelError

# Beside a Qwen2 model transformers rebuilds any byte-level BPE tokenizer with Qwen2's word splitting, normalisation and
# end token, whatever was saved. A tokenizer that has these from the start is the same everywhere.
PAD, EOS = "<pad>", "<|endoftext|>"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

AS_IT_IS = Reading()
_NEUTRAL = ("\n", ":", "?", "a")
"""Texts to stand before a response where its prompt's end would change with it."""
_NEUTRAL_PARTS: list[list[Part]] = [[text] for text in _NEUTRAL]
_NEAR = 64
"""Characters before a response that may have a part in its tokens."""


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


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: PromptText, *, reading: Reading = AS_IT_IS) -> np.ndarray:
    """Ids [P] of a prompt, with the special tokens its tokenizer or chat template puts before a response.

    An encoder's separator stays between prompt and response, as between the two texts of a pair. A beginning-of-sequence
    token that the text itself begins with is that of the tokenizer. `reading` says what may be read in more than one way.
    """
    return _encode_prompt(tokenizer, prompt, reading)[0]


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str, *, reading: Reading = AS_IT_IS) -> np.ndarray:
    """Ids [R] of a response that nothing stands before, its end token included, once."""
    return _ended(tokenizer, encode_parts(tokenizer, _response(tokenizer, response, reading), add_special_tokens=False))


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptText,
    responses: Sequence[str],
    *,
    reading: Reading = AS_IT_IS,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ids [P] of a prompt and [R] of each response to it, end tokens included: those of the two read as one text.

    A tokenizer that marks the beginning of a text with a space does not mark that of a response: the policy goes on
    from the prompt's tokens, and where these end with a line break no space follows. Where the two would melt into one
    token, which a policy that is given the prompt can never draw, the response's tokens are those after other text.
    """
    if not prompt:
        return np.zeros(0, dtype=np.int32), [encode_response(tokenizer, text, reading=reading) for text in responses]
    ids, parts = _encode_prompt(tokenizer, prompt, reading)
    if tokenizer.cls_token_id is not None and ids[-1] in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        return ids, [encode_response(tokenizer, text, reading=reading) for text in responses]
    befores = [_tail(parts), *_NEUTRAL_PARTS]
    return ids, [_continued(tokenizer, befores, _response(tokenizer, text, reading)) for text in responses]


def control_strings_in(tokenizer: PreTrainedTokenizerBase, prompt: PromptText, responses: Sequence[str]) -> list[str]:
    """The control strings that people wrote into a prompt and responses; not an end token where a response ends."""
    texts = [_without_bos(tokenizer, prompt)] if isinstance(prompt, str) else [m["content"] for m in prompt]
    texts += [_without_end(tokenizer, response) for response in responses]
    return [found for text in texts for found in control_strings(tokenizer, text)]


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
    neutral = (tokenizer(text, add_special_tokens=False).input_ids for text in _NEUTRAL)
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


def _encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: PromptText, reading: Reading
) -> tuple[np.ndarray, list[Part]]:
    """Ids [P] of a prompt, and the parts it was written with."""
    if isinstance(prompt, str) and reading.plain_prompts == "chat":
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        text = _without_bos(tokenizer, prompt)
        parts: list[Part] = [text] if reading.special_tokens_in_text == "split" else parse(tokenizer, text)
        ids = encode_parts(tokenizer, parts, add_special_tokens=True)
        if ids and ids[-1] == tokenizer.eos_token_id and tokenizer.cls_token_id is None:
            ids = ids[:-1]
        return np.asarray(ids, dtype=np.int32), parts
    if tokenizer.chat_template is None:
        raise ModelError("The prompts are chat messages and the tokenizer has no chat template to write them with.")
    if reading.special_tokens_in_text == "split":
        parts = parse_messages(tokenizer, prompt, roles=reading.roles)
    else:
        parts = parse(tokenizer, write_conversation(tokenizer, prompt, roles=reading.roles))
    return np.asarray(encode_parts(tokenizer, parts, add_special_tokens=False), dtype=np.int32), parts


def _continued(
    tokenizer: PreTrainedTokenizerBase, befores: Sequence[list[Part]], response: Sequence[Part]
) -> np.ndarray:
    """Ids of a response as it stands after the first of some texts whose own ids it leaves as they are."""
    for before in befores:
        head = encode_parts(tokenizer, before, add_special_tokens=False)
        whole = encode_parts(tokenizer, _joined([*before, *response]), add_special_tokens=False)
        if whole[: len(head)] == head:
            return _ended(tokenizer, whole[len(head) :])
    return _ended(tokenizer, encode_parts(tokenizer, response, add_special_tokens=False))


def _response(tokenizer: PreTrainedTokenizerBase, response: str, reading: Reading) -> list[Part]:
    text = _without_end(tokenizer, response)
    return [text] if reading.special_tokens_in_text == "split" else parse(tokenizer, text)


def _ended(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> np.ndarray:
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts with neighbouring texts as one."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined


def _tail(parts: Sequence[Part]) -> list[Part]:
    """The end of a prompt: what stands farther from a response than this has no part in its tokens."""
    if parts and isinstance(parts[-1], str):
        return [parts[-1][-_NEAR:]] if len(parts[-1]) >= _NEAR else list(parts[-2:])
    return list(parts[-1:])


def _without_bos(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    bos = tokenizer.bos_token
    if bos is None or not prompt.startswith(bos) or tokenizer("a").input_ids[0] != tokenizer.bos_token_id:
        return prompt
    return prompt.removeprefix(bos)


def _without_end(tokenizer: PreTrainedTokenizerBase, response: str) -> str:
    """A response without end tokens at its end, where its own is put."""
    while response.rstrip().endswith(str(tokenizer.eos_token)):
        response = response.rstrip().removesuffix(str(tokenizer.eos_token))
    return response
