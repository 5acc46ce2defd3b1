"""A conversation as its chat template writes it, or why it cannot be written."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rayrlhf.config.data import Roles
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import TOOLS, Message
from rayrlhf.errors import in_one_line


def write_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, roles: Roles, finished: bool = False
) -> str:
    """The messages up to where a response begins, or a `finished` conversation to its end.

    UnusableRowError where the template refuses them or leaves some out.
    """
    tools = [json.loads(message["content"]) for message in messages if message["role"] == TOOLS]
    turns = [dict(message) for message in messages if message["role"] != TOOLS]
    _check_taken(str(tokenizer.chat_template), turns, with_tools=bool(tools))
    try:
        return _written(tokenizer, turns, tools, finished)
    except UnusableRowError as refused:
        if roles == "refuse":
            raise UnusableRowError(f"{refused} (data.roles=merge joins turns that it does not take)") from None
    return _written(tokenizer, merged(turns), tools, finished)


def merged(turns: Sequence[Message]) -> list[Message]:
    """The turns with system text before the user's next, and neighbours of one role as one, an empty line between them."""
    found: list[Message] = []
    for turn in turns:
        own = {**turn, "role": "user"} if turn["role"] in ("system", "developer") else dict(turn)
        if found and found[-1]["role"] == own["role"] and not (found[-1].keys() | own.keys()) - {"role", "content"}:
            found[-1]["content"] = f"{found[-1]['content']}\n\n{own['content']}"
        else:
            found.append(own)
    return found


def _written(tokenizer: PreTrainedTokenizerBase, turns: list[Message], tools: list[Any], finished: bool) -> str:
    options = {"tools": tools[0] if tools else None, "add_generation_prompt": not finished, "tokenize": False}
    try:
        written = tokenizer.apply_chat_template(turns, **options)
    except Exception as error:  # noqa: BLE001 - a template is other people's code
        raise UnusableRowError(f"the chat template refuses it: {in_one_line(error)}") from None
    for turn in turns:
        if turn["role"] in ("system", "developer", "user") and turn["content"].strip() not in str(written):
            raise UnusableRowError(f"the chat template leaves out its {turn['role']} message")
    return str(written)


def _check_taken(template: str, turns: Sequence[Message], *, with_tools: bool) -> None:
    """UnusableRowError where something beside role and content would be lost, as far as the template's text shows it."""
    if with_tools and "tools" not in template:
        raise UnusableRowError("it has tools, which the chat template does not write")
    for key in ("tool_calls", "reasoning_content"):
        if any(key in turn for turn in turns) and key not in template:
            raise UnusableRowError(f"it has {key}, which the chat template does not write")
    if "tool_call_id" not in template and not _answered_in_order(turns):
        raise UnusableRowError(
            "it has tool_call_id in another order than its tool_calls, which the chat template does not write"
        )


def _answered_in_order(turns: Sequence[Message]) -> bool:
    """Whether every tool message answers the call that its place says: its id then adds nothing."""
    waiting: list[str | None] = []
    for turn in turns:
        if "tool_call_id" in turn:
            expected = waiting.pop(0) if waiting else None
            if turn["tool_call_id"] != expected:
                return False
        elif "tool_calls" in turn:
            waiting = [call.get("id") for call in turn["tool_calls"]]
    return True
