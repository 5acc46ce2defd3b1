"""chosen and rejected: as text, as dialogues, as messages; beside a prompt, or with the prompt they share."""

from typing import Any

from rayrlhf.config import SourceConfig
from rayrlhf.data import messages
from rayrlhf.data.fields import Row, UnusableRowError, as_text, text
from rayrlhf.data.prompt_forms import missing_prompt, prompt_like, prompt_of, stated_prompt
from rayrlhf.data.ranking import ranked
from rayrlhf.data.schema import Message, Preference, PromptText, Response

_ASSISTANT = "\n\nAssistant:"
_REPEATED = 20
"""Characters of a prompt from which on two responses that both begin with it are taken to repeat it."""


def pair_record(row: Row, source: SourceConfig) -> Preference:
    """The record of a row with chosen and rejected."""
    for key in (source.chosen_key, source.rejected_key):
        if key not in row:
            raise UnusableRowError(f"the field {key} is missing")
    sides = [row[source.chosen_key], row[source.rejected_key]]
    if all(_is_texts(side) for side in sides):
        return _best_of_many(row, source)
    if any(messages.is_conversation(side) for side in sides):
        prompt, answers = _of_messages(row, source)
    else:
        prompt, answers = _of_texts(row, source)
    if answers[0] == answers[1]:
        raise UnusableRowError("chosen and rejected are the same text")
    return ranked(prompt, [Response(text=answer) for answer in answers], ((0,), (1,)))


def _of_texts(row: Row, source: SourceConfig) -> tuple[PromptText, list[str]]:
    keys = (source.chosen_key, source.rejected_key)
    texts = [text(row, key) for key in keys]
    stated = stated_prompt(row, source)
    if stated is not None:
        row.form = "chosen and rejected beside a prompt"
        if isinstance(stated, list):
            row.form += " of messages"
        elif len(stated) >= _REPEATED and all(own.startswith(stated) and own[len(stated) :].strip() for own in texts):
            row.form += " that both begin with"
            texts = [own[len(stated) :] for own in texts]
        return stated, texts
    heads = [_dialogue(own, key) for own, key in zip(texts, keys, strict=True)]
    if heads[0][0] != heads[1][0]:
        row.form = "chosen and rejected dialogues (HH)"
        return _shared_prompt(*texts)
    if heads[0][0]:
        row.form = "chosen and rejected dialogues (HH)"
    else:
        if prompt_like(row):
            raise UnusableRowError(missing_prompt(row, source))
        row.form = "chosen and rejected texts without a prompt"
    return heads[0][0], [own for _, own in heads]


def _of_messages(row: Row, source: SourceConfig) -> tuple[PromptText, list[str]]:
    """A conversation on either side makes the whole a conversation."""
    sides = [_side(row[key], key) for key in (source.chosen_key, source.rejected_key)]
    heads = [head for head, _ in sides if head]
    stated = stated_prompt(row, source)
    if not heads:
        if stated is None:
            raise UnusableRowError(missing_prompt(row, source))
        row.form = "chosen and rejected messages beside a prompt"
        return ([messages.turn("user", stated)] if isinstance(stated, str) else stated), [own for _, own in sides]
    if any(head != heads[0] for head in heads):
        raise UnusableRowError("chosen and rejected do not share a prompt")
    row.form = "chosen and rejected conversations"
    if stated is not None:
        row.form += " beside their prompt"
    return _conversation(heads[0], stated), [own for _, own in sides]


def _side(value: Any, key: str) -> tuple[list[Message], str]:
    """The turns before the answer, and the answer."""
    if isinstance(value, list) and len(value) > 1:
        return messages.split_messages(value, key)
    return [], messages.as_response(value, key)


def _conversation(head: list[Message], stated: PromptText | None) -> list[Message]:
    """The turns both sides begin with, and what a prompt beside them has in front of these: a system message, tools."""
    if stated is None:
        return head
    if isinstance(stated, str):
        if not any(message["content"].strip() == stated.strip() for message in head):
            raise UnusableRowError("chosen and rejected begin with other turns than the prompt beside them")
        return head
    own = [message for message in stated if message["role"] in ("system", "tools")]
    said = [message for message in stated if message not in own]
    turns = [message for message in head if message["role"] != "system"]
    if said and said != turns and said != turns[-len(said) :]:
        raise UnusableRowError("chosen and rejected begin with other turns than the prompt beside them")
    return [message for message in own if message not in head] + head


def _best_of_many(row: Row, source: SourceConfig) -> Preference:
    row.form = "lists of chosen and rejected texts (rewardbench 2)"
    good, bad = row[source.chosen_key], row[source.rejected_key]
    responses = [Response(text=as_text(value, "chosen or rejected")) for value in (*good, *bad)]
    groups = (tuple(range(len(good))), tuple(range(len(good), len(responses))))
    return ranked(prompt_of(row, source), responses, groups)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _dialogue(said: str, key: str) -> tuple[str, str]:
    """Prompt and response of a dialogue whose last turn is the assistant's; "" and the text where it is none."""
    head, found, tail = said.rpartition(_ASSISTANT)
    if found and not tail.strip():
        raise UnusableRowError(f"the field {key} ends with an empty answer")
    return (head + found, tail) if found else ("", said)


def _shared_prompt(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """Dialogues that part earlier than their last turn: the prompt is what they share, up to a turn of the assistant."""
    head, found, _ = _common_prefix(chosen, rejected).rpartition(_ASSISTANT)
    if not found:
        raise UnusableRowError("chosen and rejected do not share a prompt")
    cut = len(head + found)
    if not chosen[cut:].strip() or not rejected[cut:].strip():
        raise UnusableRowError("chosen or rejected is empty after the prompt they share")
    return head + found, [chosen[cut:], rejected[cut:]]


def _common_prefix(first: str, second: str) -> str:
    parted = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[:parted] if parted is not None else min(first, second, key=len)
