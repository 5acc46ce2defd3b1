"""Conversations as data sets write them, brought to one form: messages of role and content."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rayrlhf.data.fields import Row, UnusableRowError, as_text, is_blank, shown
from rayrlhf.data.schema import TOOLS, Message, PromptText

_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "observation": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip
"""Other people's names of a role."""
BESIDE_CONTENT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What a message may carry beside role and content; it goes to the chat template."""


def prompt(row: Row, key: str) -> PromptText:
    """A prompt, as text or as chat messages."""
    value = row.get(key)
    if isinstance(value, dict) and "full_text" in value:  # as WebGPT writes a question
        value = value["full_text"]
    if key not in row:
        raise UnusableRowError(f"the field {key} is missing")
    return messages(value, key) if isinstance(value, list) else as_text(value, key)


def response(row: Row, key: str) -> str:
    """A response, as text or as one assistant message."""
    if key not in row:
        raise UnusableRowError(f"the field {key} is missing")
    return as_response(row[key], key)


def as_response(value: Any, key: str) -> str:
    """The response a value holds: text, or one assistant message."""
    if not isinstance(value, list | dict):
        return as_text(value, key)
    found = messages(value if isinstance(value, list) else [value], key)
    if len(found) != 1 or found[0]["role"] != "assistant":
        raise UnusableRowError(f"the field {key} must hold one assistant message beside an explicit prompt")
    return _answer(found[0], key)


def messages(value: Sequence[Any], key: str) -> list[Message]:
    """Chat messages, at least one, each with role and content; a system message without any is left out."""
    found = [_message(message, key) for message in value]
    found = [message for message in found if message["role"] != "system" or message["content"].strip()]
    if not found:
        raise UnusableRowError(f"the field {key} holds no messages")
    return found


def split_messages(value: Any, key: str) -> tuple[list[Message], str]:
    """Chat messages up to the last, and the last, which is the assistant's."""
    if not isinstance(value, list):
        raise UnusableRowError(f"the field {key} is {type(value).__name__}, not messages")
    found = messages(value, key)
    if len(found) < 2 or found[-1]["role"] != "assistant":
        raise UnusableRowError(f"the field {key} must end with an assistant message after a prompt")
    return found[:-1], _answer(found[-1], key)


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, or one message."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and bool({"role", "from"} & first.keys())


def turn(role: str, content: str) -> Message:
    """A message."""
    return {"role": role, "content": content}


def tools_message(value: Any, key: str) -> list[Message]:
    """The definitions of the tools of a conversation, as the message that goes before all others; none for no tools."""
    if is_blank(value) or value in ([], {}):
        return []
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise UnusableRowError(f"the field {key} is {shown(value)}, not tool definitions as JSON") from None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRowError(f"the field {key} is {shown(value)}, not a list of tool definitions")
    return [turn(TOOLS, json.dumps(_without_nulls(tools), ensure_ascii=False))] if tools else []


def history(value: Any, key: str) -> list[Message]:
    """Earlier turns: messages, or pairs of what the user and what the assistant said."""
    if is_conversation(value):
        return messages(value, key)
    pairs = value if isinstance(value, list) else None
    if pairs is None or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UnusableRowError(f"the field {key} is {shown(value)}, not earlier turns (pairs of question and answer)")
    return [
        turn(role, as_text(said, key)) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def _message(value: Any, key: str) -> Message:
    if not isinstance(value, dict):
        raise UnusableRowError(f"the field {key} holds a message without role and content")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str):
        raise UnusableRowError(f"the field {key} holds a message without role and content")
    if value.get("function_call") is not None:
        raise UnusableRowError(f"the field {key} holds a message with function_call, which tool_calls replaced")
    role = _ROLES.get(role.strip().lower(), role.strip())
    carried = {name: value[name] for name in BESIDE_CONTENT if value.get(name) not in (None, "", [])}
    if "tool_calls" in carried:
        carried["tool_calls"] = _tool_calls(carried["tool_calls"], key)
    return {"role": role, "content": _content(content, role, key, silent="tool_calls" in carried), **carried}


def _content(content: Any, role: str, key: str, *, silent: bool) -> str:
    """`silent` where a message may say nothing, since it calls a tool."""
    if isinstance(content, list):
        content = "".join(_text_parts(content, key))
    if silent and (content is None or is_blank(content)):
        return ""
    if content is None:
        raise UnusableRowError(f"the field {key} holds a message without role and content: its content is null")
    if not isinstance(content, str):
        raise UnusableRowError(f"the field {key} holds a message whose content is {type(content).__name__}, not text")
    if not content.strip():
        if role == "system":
            return ""
        raise UnusableRowError(f"the field {key} holds an empty message")
    return as_text(content, key)


def _text_parts(parts: Iterable[Any], key: str) -> Iterable[str]:
    for part in parts:
        found = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(found, str):
            kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
            raise UnusableRowError(f"the field {key} holds a message with a part of type {kind}: only text is read")
        yield found


def _tool_calls(value: Any, key: str) -> list[dict[str, Any]]:
    """Calls as templates read them: their arguments as values, not as JSON text."""
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise UnusableRowError(f"the field {key} holds tool_calls that are {shown(value)}, not a list of calls")
    calls = []
    for call in _without_nulls(value):
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UnusableRowError(f"the field {key} holds a tool call without the name of a function")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                raise UnusableRowError(
                    f"the field {key} holds a tool call whose arguments are not JSON: {shown(arguments)}"
                ) from None
        called = {**function, "arguments": arguments}
        calls.append({**call, "function": called} if "function" in call else called)
    return calls


def _without_nulls(value: Any) -> Any:
    """Columnar files write every field of any row into each one, as null."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _answer(message: Message, key: str) -> str:
    beside = next((name for name in BESIDE_CONTENT if name in message and name != "name"), None)
    if beside is not None:
        raise UnusableRowError(f"the response in the field {key} has {beside}, and a response is text alone")
    return str(message["content"])
