"""From raw rows to text records: the forms that demonstrations, preferences and prompts come in."""

from typing import Any

from rayrlhf.config import SourceConfig
from rayrlhf.data.schema import Demonstration, Message, Preference, PromptRow, PromptText
from rayrlhf.data.sources import RawRow

_ASSISTANT = "\n\nAssistant:"


class UnusableRowError(ValueError):
    """Why one row cannot be used."""


def demonstration(row: RawRow, source: SourceConfig) -> Demonstration:
    """prompt and response; or chat messages that end with the assistant's; or an opening and its continuation."""
    if source.format == "labelled":
        opening, rest = split_opening(row, source)
        return Demonstration(prompt=opening, response=rest, origin=row.origin)
    if "messages" in row.fields and source.prompt_key not in row.fields:
        prompt, response = _split_messages(row.fields["messages"], "messages")
        return Demonstration(prompt=prompt, response=response, origin=row.origin)
    prompt_text = _prompt(row.fields, source.prompt_key)
    response = _response(row.fields, source.response_key)
    return Demonstration(prompt=prompt_text, response=response, origin=row.origin)


def preference(row: RawRow, source: SourceConfig) -> Preference:
    """chosen and rejected, with an explicit prompt or with the prompt they share."""
    if source.prompt_key in row.fields:
        prompt = _prompt(row.fields, source.prompt_key)
        chosen, rejected = (_response(row.fields, key) for key in (source.chosen_key, source.rejected_key))
    else:
        chosen_prompt, chosen = _implicit(row.fields, source.chosen_key)
        prompt, rejected = _implicit(row.fields, source.rejected_key)
        if chosen_prompt != prompt:
            prompt, chosen, rejected = _shared_prompt(row.fields, source)
    if chosen == rejected:
        raise UnusableRowError("chosen and rejected are the same text")
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, origin=row.origin)


def prompt_row(row: RawRow, source: SourceConfig) -> PromptRow:
    """A prompt; or the opening of a labelled text."""
    if source.format == "labelled":
        return PromptRow(prompt=split_opening(row, source)[0], origin=row.origin)
    return PromptRow(prompt=_prompt(row.fields, source.prompt_key), origin=row.origin)


def split_opening(row: RawRow, source: SourceConfig) -> tuple[str, str]:
    """The first `opening_words` words of a text, and the rest with its leading space."""
    words = labelled_text(row, source)[0].split()
    if len(words) <= source.opening_words:
        raise UnusableRowError(f"the text has {len(words)} words, too few to open with {source.opening_words}")
    return " ".join(words[: source.opening_words]), " " + " ".join(words[source.opening_words :])


def labelled_text(row: RawRow, source: SourceConfig) -> tuple[str, bool]:
    """A text and whether its label is 1."""
    text = _text(row.fields, source.text_key)
    label = row.fields.get(source.label_key)
    if str(label) not in ("0", "1"):
        raise UnusableRowError(f"the label {source.label_key} is {label!r}, not 0 or 1")
    return text, str(label) == "1"


def _text(fields: dict[str, Any], key: str) -> str:
    if key not in fields:
        raise UnusableRowError(f"the field {key} is missing")
    value = fields[key]
    if not isinstance(value, str):
        raise UnusableRowError(f"the field {key} is {type(value).__name__}, not text")
    if not value.strip():
        raise UnusableRowError(f"the field {key} is empty")
    return value


def _prompt(fields: dict[str, Any], key: str) -> PromptText:
    value = fields.get(key)
    return _messages(value, key) if isinstance(value, list) else _text(fields, key)


def _response(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if isinstance(value, list):
        messages = _messages(value, key)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise UnusableRowError(f"the field {key} must hold one assistant message beside an explicit prompt")
        return messages[0]["content"]
    return _text(fields, key)


def _messages(value: list[Any], key: str) -> list[Message]:
    if not value:
        raise UnusableRowError(f"the field {key} holds no messages")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UnusableRowError(f"the field {key} holds a message without role and content")
        if not message["content"].strip():
            raise UnusableRowError(f"the field {key} holds an empty message")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _split_messages(value: Any, key: str) -> tuple[PromptText, str]:
    if not isinstance(value, list):
        raise UnusableRowError(f"the field {key} is {type(value).__name__}, not messages")
    messages = _messages(value, key)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UnusableRowError(f"the field {key} must end with an assistant message after a prompt")
    return messages[:-1], messages[-1]["content"]


def _implicit(fields: dict[str, Any], key: str) -> tuple[PromptText, str]:
    """Prompt and response of one side: messages, or a dialogue whose last turn is the assistant's."""
    if isinstance(fields.get(key), list):
        return _split_messages(fields[key], key)
    text = _text(fields, key)
    head, found, tail = text.rpartition(_ASSISTANT)
    if found and not tail.strip():
        raise UnusableRowError(f"the field {key} ends with an empty answer")
    return (head + found, tail) if found else ("", text)


def _shared_prompt(fields: dict[str, Any], source: SourceConfig) -> tuple[PromptText, str, str]:
    """Dialogues that part earlier than their last turn: the prompt is what they share, up to a turn of the assistant."""
    chosen, rejected = (fields.get(key) for key in (source.chosen_key, source.rejected_key))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise UnusableRowError("chosen and rejected do not share a prompt")
    common = _common_prefix(chosen, rejected)
    head, found, _ = common.rpartition(_ASSISTANT)
    if not found:
        raise UnusableRowError("chosen and rejected do not share a prompt")
    cut = len(head + found)
    if not chosen[cut:].strip() or not rejected[cut:].strip():
        raise UnusableRowError("chosen or rejected is empty after the prompt they share")
    return head + found, chosen[cut:], rejected[cut:]


def _common_prefix(first: str, second: str) -> str:
    parted = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[:parted] if parted is not None else min(first, second, key=len)
