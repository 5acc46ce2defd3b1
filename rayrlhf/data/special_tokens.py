"""Control strings in people's text, such as `<|im_start|>`: ordinary text unless asked otherwise, and counted."""

import functools
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from rayrlhf.config.data import SpecialTokensInText
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Message
from rayrlhf.errors import ModelError, in_one_line

Part = str | int
"""Text as a person wrote it, or a control token's id."""

# Stands for a control token or string while a text is put together. Nobody can write it: it is drawn anew in every
# process, and no token depends on it.
_MARK = "\U00100000" + secrets.token_hex(8)
_MARKED = re.compile(_MARK + r"x(\d+)x")

# Tokens that a template writes for a turn are control tokens too, also where the tokenizer does not call them special.
_TURNS: list[Message] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


@dataclass(frozen=True)
class _Controls:
    """A tokenizer's control tokens: by text, the pattern that finds them, and a twin that takes them for text."""

    ids: dict[str, int]
    pattern: re.Pattern[str]
    twin: Tokenizer | None
    """Reads every control string as ordinary text, and a mark as the control token; None without a fast tokenizer."""
    marked: dict[int, int]
    """The control token of each mark's id in the twin."""


@dataclass(kw_only=True)
class ControlStrings:
    """The account of control strings in one data set."""

    what: str
    rows: int = 0
    found: int = 0
    rows_with: int = 0
    first: str = ""

    def add(self, found: Sequence[str]) -> None:
        """Count those of one row."""
        self.rows += 1
        self.found += len(found)
        self.rows_with += bool(found)
        self.first = self.first or next(iter(found), "")

    def merge(self, later: "ControlStrings") -> None:
        """Count those of the rows that come next."""
        self.rows += later.rows
        self.found += later.found
        self.rows_with += later.rows_with
        self.first = self.first or later.first

    def told(self, special: SpecialTokensInText) -> str | None:
        """A sentence about them, None where there are none."""
        if not self.found:
            return None
        read = "read as ordinary text" if special == "split" else "read as control tokens"
        return (
            f"The texts of {self.rows_with} of {self.rows} rows of {self.what} hold {self.found} control strings such as "
            f"{self.first}, {read} (data.special_tokens_in_text={special})."
        )


def control_strings(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Every control string that stands in a text, in order."""
    return _controls(tokenizer).pattern.findall(text)


def parse(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Part]:
    """A text whose control strings are meant as control tokens, in parts."""
    controls = _controls(tokenizer)
    parts: list[Part] = []
    end = 0
    for found in controls.pattern.finditer(text):
        parts += [text[end : found.start()], controls.ids[found.group()]]
        end = found.end()
    return [part for part in [*parts, text[end:]] if part != ""]


def cover(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Message]:
    """The messages with a mark in the place of each control string that people wrote; `parse_covered` takes them out."""
    strings = list(_controls(tokenizer).ids)
    return [_map_text(message, functools.partial(_cover, tokenizer, strings)) for message in messages]


def parse_covered(tokenizer: PreTrainedTokenizerBase, written: str) -> list[Part]:
    """What a template wrote of covered messages, in parts: what people wrote is text, word for word."""
    strings = list(_controls(tokenizer).ids)
    return [
        _MARKED.sub(lambda mark: strings[int(mark.group(1))], part) if isinstance(part, str) else part
        for part in parse(tokenizer, written)
    ]


def encode_parts(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part], *, add_special_tokens: bool) -> list[int]:
    """Ids of parts that stand in one text, in one pass, so that neighbours are read as they are in the whole.

    Where no person's text holds a control string these are the stock tokenizer's ids of the whole text.
    """
    controls = _controls(tokenizer)
    if not any(controls.pattern.search(part) for part in parts if isinstance(part, str)):
        names = {number: text for text, number in controls.ids.items()}
        whole = "".join(part if isinstance(part, str) else names[part] for part in parts)
        return _ids(lambda: tokenizer(whole, add_special_tokens=add_special_tokens).input_ids)
    if controls.twin is None:
        raise ModelError(
            f"The tokenizer {tokenizer.name_or_path} cannot read {next(iter(controls.ids))!r} and the like in people's text "
            f"as ordinary text: set data.special_tokens_in_text=encode, or take the control strings out."
        )
    marks = {number: _mark(index) for index, number in enumerate(controls.ids.values())}
    whole = "".join(part if isinstance(part, str) else marks[part] for part in parts)
    twin = controls.twin
    found = _ids(lambda: twin.encode(whole, add_special_tokens=add_special_tokens).ids)
    return [controls.marked.get(number, number) for number in found]


def _ids(encode: Callable[[], list[int]]) -> list[int]:
    try:
        return encode()
    except Exception as error:  # noqa: BLE001 - whatever a tokenizer of other people's code raises at a text
        raise UnusableRowError(f"the tokenizer refuses it: {in_one_line(error)}") from None


def _controls(tokenizer: PreTrainedTokenizerBase) -> _Controls:
    return _find_controls(tokenizer, len(tokenizer), tokenizer.chat_template)


@functools.lru_cache(maxsize=16)
def _find_controls(tokenizer: PreTrainedTokenizerBase, size: int, template: str | None) -> _Controls:
    """Of a tokenizer as it is now: it may be given more tokens, or another template."""
    del size
    added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
    ids = {token.content: number for number, token in added.items() if token.special}
    ids |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    turns = _turns(tokenizer) if template is not None else ""
    ids |= {
        token.content: number for number, token in added.items() if token.content.strip() and token.content in turns
    }
    longest_first = sorted((text for text in ids if text), key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(text) for text in longest_first) or r"(?!)")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return _Controls(ids, pattern, None, {})
    twin = _twin(backend, ids)
    flags = {number: (token.lstrip, token.rstrip, token.single_word) for number, token in added.items()}
    marked = {}
    for index, number in enumerate(ids.values()):
        lstrip, rstrip, single_word = flags.get(number, (False, False, False))
        twin.add_tokens(
            [AddedToken(_mark(index), lstrip=lstrip, rstrip=rstrip, single_word=single_word, normalized=False)]
        )
        marked[cast(int, twin.token_to_id(_mark(index)))] = number
    return _Controls(ids, pattern, twin, marked)


def _twin(backend: Tokenizer, ids: dict[str, int]) -> Tokenizer:
    state: dict[str, Any] = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in ids
    twin = Tokenizer.from_str(json.dumps(state))
    twin.encode_special_tokens = True
    twin.no_truncation()
    twin.no_padding()
    return twin


def _turns(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.apply_chat_template(_TURNS, tokenize=False))
    except Exception:  # noqa: BLE001 - somebody else's template; it is heard when a row is written with it
        return ""


def _mark(index: int) -> str:
    return f"{_MARK}x{index}x"


def _cover(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], text: str) -> str:
    return _controls(tokenizer).pattern.sub(lambda found: _mark(strings.index(found.group())), text)


def _map_text(value: Any, change: Any) -> Any:
    """Every text in a message, however deep it lies."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_text(inner, change) for key, inner in value.items()}
    return [_map_text(inner, change) for inner in value] if isinstance(value, list) else value
