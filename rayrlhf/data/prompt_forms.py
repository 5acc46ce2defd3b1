"""The prompt of a row, whichever columns it is written in."""

from rayrlhf.config import SourceConfig
from rayrlhf.data import fields, messages
from rayrlhf.data.fields import Row, UnusableRowError
from rayrlhf.data.schema import Message, PromptText

_CONVERSATIONS = ("context_messages", "conversations", "conversation", "context", "messages")
"""Columns of other people's data sets that hold the turns before a response."""
PROMPT_LIKE = frozenset(
    {
        "question", "instruction", "input", "query", "context", "post", "document", "article", "text", "problem", "passage",
        "conversation", "conversations", "dialogue", "messages", "history", "title", "system", "system_prompt", "persona",
        "knowledge", "background", "user", "prompt",
    }
)  # fmt: skip
"""Names of columns that may hold a prompt, or a part of one."""


def prompt_of(row: Row, source: SourceConfig) -> PromptText:
    """The prompt of a row, with the system message, history and tools beside it; UnusableRowError without one."""
    found = stated_prompt(row, source)
    if found is None:
        raise UnusableRowError(missing_prompt(row, source))
    return found


def stated_prompt(row: Row, source: SourceConfig) -> PromptText | None:
    """The prompt that the columns of a row state, None where none does.

    What is composed of several columns (a system message, earlier turns, tools, an instruction and its input) is a
    conversation; the text of a single one stays as it is.
    """
    found = _own_column(row, source)
    before = turns_before(row, source)
    if found is None:
        return [*before, *_user_turns(row)] if before and _user_turns(row) else _user_turns(row) or None
    if not before:
        return found
    return [*before, messages.turn("user", found)] if isinstance(found, str) else put_before(before, found)


def missing_prompt(row: Row, source: SourceConfig) -> str:
    """That there is no prompt, and what may be meant for one."""
    told = f"the field {source.prompt_key} is missing"
    candidates = prompt_like(row)
    return f"{told}; there is {', '.join(candidates)}: set prompt_key" if candidates else told


def prompt_like(row: Row) -> list[str]:
    """The columns that may be meant for a prompt, by their names."""
    return [key for key in row if key.strip("\ufeff ").lower() in PROMPT_LIKE and row.holds(key)]


def _own_column(row: Row, source: SourceConfig) -> PromptText | None:
    if source.prompt_key in row:
        return messages.prompt(row, source.prompt_key)
    if "prompt_key" in source.model_fields_set:
        raise UnusableRowError(missing_prompt(row, source))
    for key in _CONVERSATIONS:
        value = row.peek(key)
        if not isinstance(value, list) or not messages.is_conversation(value):
            continue
        turns = messages.messages(value, key)
        if turns[-1]["role"] != "assistant":  # else it is the whole conversation, answer included
            return messages.messages(row[key], key)
    return None


def _user_turns(row: Row) -> list[Message]:
    """One column or two that state what a user asks: orca's question, WebGPT's question, Alpaca's instruction with input."""
    for key in ("question", "instruction"):
        if row.holds(key):
            asked = messages.prompt(row, key)
            if not isinstance(asked, str):
                return asked
            more = fields.text(row, "input") if key == "instruction" and row.holds("input") else ""
            return [messages.turn("user", f"{asked}\n\n{more}" if more else asked)]
    return []


def turns_before(row: Row, source: SourceConfig) -> list[Message]:
    """What columns of their own put before a prompt: the tools, a system message, earlier turns."""
    found: list[Message] = []
    if source.tools_key in row:
        found += messages.tools_message(row[source.tools_key], source.tools_key)
    if row.holds(source.system_key):
        found.append(messages.turn("system", fields.text(row, source.system_key)))
    if source.history_key in row and row.kind(source.history_key) is list and row[source.history_key]:
        found += messages.history(row[source.history_key], source.history_key)
    return found


def put_before(before: list[Message], conversation: list[Message]) -> list[Message]:
    """A conversation with what columns beside it put before it, but for what it says already."""
    stated, given = (
        next((message for message in turns if message["role"] == "system"), None) for turns in (conversation, before)
    )
    if stated is not None and given is not None and stated != given:
        raise UnusableRowError("it has one system message in its conversation and another in a column of its own")
    return [message for message in before if message != stated] + conversation
