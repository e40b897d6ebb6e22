"""A chat from a row, by the conventions of the hub and of TRL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import DataError

Chat = list[dict[str, str]]  # of messages with `role` and `content`, in order

CHATS = ("messages", "conversations")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))
_CONTEXT = ("input", "context")  # of an instruction
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"}
_KNOWN = f"{', '.join(CHATS)}, or one of the pairs {', '.join('+'.join(pair) for pair in PAIRS)}"


def known(columns: Collection[str]) -> bool:
    """Whether a row with these columns holds a chat."""
    return any(name in columns for name in CHATS) or any(set(pair) <= set(columns) for pair in PAIRS)


def unknown_columns(columns: Collection[str]) -> str:
    """The message for a row that holds none."""
    return f"has the columns {', '.join(columns) or '(none)'}: a chat is in {_KNOWN}"


def parse(row: Mapping[str, Any], *, answered: bool = True) -> Chat:
    """Read the chat of a row.

    Args:
        row: with `messages` or `conversations` (role and content, or from and value), or a prompt and its response; an
            `instruction` may have an `input` or `context`, which follows it after an empty line.
        answered: refuse a chat without an answer.
    Raises:
        DataError: if the row holds no chat, or one without an answer; the message goes on after the row's place.
    Example:
        >>> parse({"instruction": "Add.", "input": "1 + 1", "output": "2"})
        [{'role': 'user', 'content': 'Add.\\n\\n1 + 1'}, {'role': 'assistant', 'content': '2'}]
    """
    chat = _chat(row)
    if not any(message["content"].strip() for message in chat):
        raise DataError("has no text")
    if answered and not answers(chat):
        raise DataError("has no answer (no message of the assistant with text)")
    return chat


def answers(chat: Chat) -> list[str]:
    """The texts of the assistant's messages that have any."""
    return [message["content"] for message in chat if message["role"] == "assistant" and message["content"].strip()]


def last_answer(chat: Chat) -> tuple[Chat, str]:
    """The last answer, and the messages before it."""
    place = max(i for i, m in enumerate(chat) if m["role"] == "assistant" and m["content"].strip())
    return chat[:place], chat[place]["content"]


def _chat(row: Mapping[str, Any]) -> Chat:
    for name in CHATS:
        if row.get(name) is not None:
            return _messages(row[name], name)
    for prompt, response in PAIRS:
        if row.get(prompt) is not None and response in row:
            context = [row[name] for name in _CONTEXT if prompt == "instruction" and row.get(name)]
            before = _side(row[prompt], prompt, "user")
            before[-1]["content"] = "\n\n".join([before[-1]["content"], *(_text(part, "input") for part in context)])
            return before + _side(row[response], response, "assistant")
    raise DataError(unknown_columns(row))


def _side(value: Any, name: str, role: str) -> Chat:
    """A prompt or a response: a text, or messages as TRL has them."""
    if isinstance(value, list | tuple):
        return _messages(value, name)
    return [{"role": role, "content": _text(value, name)}]


def _messages(value: Any, name: str) -> Chat:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, Mapping) for each in value):
        raise DataError(f"has {name!r} that is no list of messages")
    chat = []
    for message in value:
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise DataError(f"has a message in {name!r} without a role (`role` or `from`)")
        content = message["content"] if "content" in message else message.get("value")
        chat.append({"role": _ROLES.get(role.lower(), role.lower()), "content": _text(content, name)})
    return chat


def _text(content: Any, name: str) -> str:
    """A text, the texts of content in parts, or "" where there is none, as in a call of a tool."""
    if content is None:
        return ""
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
        if other := {str(part.get("type")) for part in content if not isinstance(part.get("text"), str)}:
            raise DataError(f"has content of the type {', '.join(sorted(other))} in {name!r}: only text can be scored")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"has a {type(content).__name__} in {name!r} where a text belongs")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"has letters in {name!r} that are not Unicode ({error.reason})") from error
    return content
