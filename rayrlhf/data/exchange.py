"""The one way a prompt and its responses become token ids: as a policy goes on from a prompt, and as a reward model reads both.

Plain text is read as it stands, with the tokenizer's end token behind a response. A conversation is what its chat template
writes: a policy's response ends with the token that ends a turn there; a reward model reads the template's text of the whole,
to the last newline, which is what any other tool will feed it.
"""

import functools
import secrets
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.config.data import Reading
from rayrlhf.data.chat import write_conversation
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Message, PromptText
from rayrlhf.data.special_tokens import Part, control_strings, cover, encode_parts, parse, parse_covered
from rayrlhf.data.tokenizer import NEUTRAL
from rayrlhf.errors import ModelError

AS_IT_IS = Reading()
_NEUTRAL_PARTS: list[list[Part]] = [[text] for text in NEUTRAL]
_NEAR = 64
"""Characters before a response that may have a part in its tokens."""
_PLACE = "\U00100001" + secrets.token_hex(8)
"""Stands where a template writes a response; nobody can have written it."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: PromptText, *, reading: Reading = AS_IT_IS) -> np.ndarray:
    """Ids [P] of a prompt, with the special tokens its tokenizer or chat template puts before a response.

    An encoder's separator stays between prompt and response, as between the two texts of a pair. A beginning-of-sequence
    token that the text itself begins with is that of the tokenizer. `reading` says what may be read in more than one way.
    """
    turns = _turns(prompt, reading)
    if turns is None:
        return _plain_prompt(tokenizer, str(prompt), reading)[0]
    frame = _Frame(tokenizer, turns, reading)
    return _ids(encode_parts(tokenizer, frame.parts(frame.opening), add_special_tokens=False))


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str, *, reading: Reading = AS_IT_IS) -> np.ndarray:
    """Ids [R] of a response that nothing stands before, its end token included, once."""
    parts = _plain_response(tokenizer, response, reading)
    return _ended(tokenizer, encode_parts(tokenizer, parts, add_special_tokens=False))


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptText,
    responses: Sequence[str],
    *,
    reading: Reading = AS_IT_IS,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ids [P] of a prompt and [R] of each response to it as a policy goes on from it, what ends a response included.

    A tokenizer that marks the beginning of a text with a space does not mark that of a response: the policy goes on
    from the prompt's tokens, and where these end with a line break no space follows. Where the two would melt into one
    token, which a policy that is given the prompt can never draw, the response's tokens are those after other text.
    """
    if not prompt:
        return _ids([]), [encode_response(tokenizer, text, reading=reading) for text in responses]
    turns = _turns(prompt, reading)
    if turns is not None:
        frame = _Frame(tokenizer, turns, reading)
        opening = frame.parts(frame.opening)
        befores = [_tail(opening), *_NEUTRAL_PARTS]
        ids = _ids(encode_parts(tokenizer, opening, add_special_tokens=False))
        return ids, [_continued(tokenizer, befores, frame.turn(response)) for response in responses]
    ids, parts = _plain_prompt(tokenizer, str(prompt), reading)
    if tokenizer.cls_token_id is not None and ids[-1] in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        return ids, [encode_response(tokenizer, text, reading=reading) for text in responses]
    befores = [_tail(parts), *_NEUTRAL_PARTS]
    end: list[Part] = [tokenizer.eos_token_id]
    plain = [[*_plain_response(tokenizer, text, reading), *end] for text in responses]
    return ids, [_continued(tokenizer, befores, response) for response in plain]


def encode_judged(
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptText,
    responses: Sequence[str],
    *,
    reading: Reading = AS_IT_IS,
    finished: bool = True,
) -> list[np.ndarray]:
    """Ids [T] of a prompt with each response as a reward model reads them; of a response that was cut, without its end.

    A conversation's are those of `apply_chat_template` on the whole of it.
    """
    turns = _turns(prompt, reading) if prompt else None
    if turns is None:
        head, bodies = encode_exchange(tokenizer, prompt, responses, reading=reading)
        return [np.concatenate([head, body if finished else body[:-1]]) for body in bodies]
    frame = _Frame(tokenizer, turns, reading)
    tail = frame.tail if finished else ""
    texts = [frame.head + frame.body(response) + tail for response in responses]
    return [_ids(encode_parts(tokenizer, frame.parts(text), add_special_tokens=False)) for text in texts]


def judged_prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: PromptText, *, reading: Reading = AS_IT_IS) -> int:
    """Tokens that a reward model reads before a response to the prompt."""
    turns = _turns(prompt, reading) if prompt else None
    if turns is None:
        return len(encode_prompt(tokenizer, prompt, reading=reading)) if prompt else 0
    frame = _Frame(tokenizer, turns, reading)
    # A space before a response becomes part of its first token.
    return len(encode_parts(tokenizer, frame.parts(frame.head.rstrip(" ")), add_special_tokens=False))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that ends a response in the chat template; None without a template that writes one."""
    return _end_of_turn(tokenizer, tokenizer.chat_template, len(tokenizer))


def control_strings_in(tokenizer: PreTrainedTokenizerBase, prompt: PromptText, responses: Sequence[str]) -> list[str]:
    """The control strings that people wrote into a prompt and responses; not an end token where a response ends."""
    texts = [_without_bos(tokenizer, prompt)] if isinstance(prompt, str) else [m["content"] for m in prompt]
    texts += [_without_end(tokenizer, response) for response in responses]
    return [found for text in texts for found in control_strings(tokenizer, text)]


class _Frame:
    """What a chat template writes around a response to a conversation; texts of people are covered where that is asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: list[Message], reading: Reading) -> None:
        if tokenizer.chat_template is None:
            raise ModelError("The prompts are chat messages and the tokenizer has no chat template to write them with.")
        self._tokenizer = tokenizer
        self._roles = reading.roles
        self._covers = reading.special_tokens_in_text == "split"
        self._turns = cover(tokenizer, turns) if self._covers else turns
        self.opening = write_conversation(tokenizer, self._turns, roles=self._roles)
        """All that stands before what a policy draws."""
        self.head, found, self.tail = self._finished(_PLACE).partition(_PLACE)
        """Before and after a response in a finished conversation."""
        if not found:
            raise UnusableRowError("the chat template does not write the assistant's message")

    def body(self, response: str) -> str:
        """A response as the template writes it, trimmed where it trims."""
        text = _without_end(self._tokenizer, response)
        own = {"role": "assistant", "content": text}
        covered = cover(self._tokenizer, [own])[0]["content"] if self._covers else text
        whole = self._finished(covered)
        inner = len(whole) - len(self.head) - len(self.tail)
        if inner < 0 or not whole.startswith(self.head) or not whole.endswith(self.tail):
            raise UnusableRowError("the chat template writes other text around this response than around any other")
        return whole[len(self.head) : len(self.head) + inner]

    def turn(self, response: str) -> list[Part]:
        """What a policy draws after the opening: what the template puts first, the response, and the end of the turn."""
        first = self.head.removeprefix(self.opening) if self.head.startswith(self.opening) else ""
        tail = self.parts(self.tail)
        ends = [number for number, part in enumerate(tail) if isinstance(part, int)]
        end: list[Part] = tail[: ends[0] + 1] if ends else [self._tokenizer.eos_token_id]
        return [*self.parts(first + self.body(response)), *end]

    def parts(self, written: str) -> list[Part]:
        """Text of the template's in parts, what people wrote uncovered."""
        return parse_covered(self._tokenizer, written) if self._covers else parse(self._tokenizer, written)

    def _finished(self, response: str) -> str:
        turns = [*self._turns, {"role": "assistant", "content": response}]
        return write_conversation(self._tokenizer, turns, roles=self._roles, finished=True)


def _turns(prompt: PromptText, reading: Reading) -> list[Message] | None:
    """A prompt as a conversation; None for one that is plain text."""
    if isinstance(prompt, list):
        return prompt
    return [{"role": "user", "content": prompt}] if reading.plain_prompts == "chat" else None


def _plain_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, reading: Reading) -> tuple[np.ndarray, list[Part]]:
    """Ids [P] of a prompt, and the parts it was written with."""
    text = _without_bos(tokenizer, prompt)
    parts: list[Part] = [text] if reading.special_tokens_in_text == "split" else parse(tokenizer, text)
    ids = encode_parts(tokenizer, parts, add_special_tokens=True)
    if ids and ids[-1] == tokenizer.eos_token_id and tokenizer.cls_token_id is None:
        ids = ids[:-1]
    return _ids(ids), parts


def _plain_response(tokenizer: PreTrainedTokenizerBase, response: str, reading: Reading) -> list[Part]:
    text = _without_end(tokenizer, response)
    return [text] if reading.special_tokens_in_text == "split" else parse(tokenizer, text)


def _continued(
    tokenizer: PreTrainedTokenizerBase, befores: Sequence[list[Part]], response: Sequence[Part]
) -> np.ndarray:
    """Ids of a response as it stands after the first of some texts whose own ids it leaves as they are."""
    for before in befores:
        head = encode_parts(tokenizer, before, add_special_tokens=False)
        whole = encode_parts(tokenizer, _joined([*before, *response]), add_special_tokens=False)
        if whole[: len(head)] == head:
            return _ids(whole[len(head) :])
    return _ids(encode_parts(tokenizer, response, add_special_tokens=False))


@functools.lru_cache(maxsize=16)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str | None, size: int) -> int | None:
    del size
    if template is None:
        return None
    try:
        frame = _Frame(tokenizer, [{"role": "user", "content": "a"}], AS_IT_IS)
    except UnusableRowError:
        return None  # heard when a row is written
    return next((part for part in frame.parts(frame.tail) if isinstance(part, int)), None)


def _ids(numbers: Sequence[int]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int32)


def _ended(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> np.ndarray:
    return _ids([*ids, tokenizer.eos_token_id])


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
    """A response without what ends one at its end, where its own is put."""
    turn = None if tokenizer.chat_template is None else end_of_turn(tokenizer)
    ends = [str(tokenizer.eos_token), *([] if turn is None else [str(tokenizer.convert_ids_to_tokens(turn))])]
    while (end := next((end for end in ends if response.rstrip().endswith(end)), None)) is not None:
        response = response.rstrip().removesuffix(end)
    return response
