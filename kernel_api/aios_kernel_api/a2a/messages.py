"""What a message says: a turn of a chat, a syscall, or an answer to what a task asked. Pure."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from aios_broker.contract.access import Reason
from aios_broker.contract.errors import InvalidSyscall, KernelError
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.llm import Message as Turn
from aios_broker.contract.names import Name
from aios_broker.contract.syscall import KINDS, Body, decode_failure, unknown_kind
from aios_kernel_api.a2a.model import JSON, TEXT, Message, Part, SendConfiguration
from aios_kernel_api.a2a.refusals import Refusal, invalid

CONTEXT_PREFIX = "a2a/"  # of the stored conversations: an agent's own contexts are left alone
MAX_CONTEXT_ID = 120
EXACT = 2**53  # below it a float is one whole number
_DECISION = re.compile(r"(approve|deny)\b[\s:,.-]*", re.IGNORECASE)
_HOW = "answer with the text `approve`, or `deny` and a reason, or with data: "
_HOW_DATA = '{"decision": "approve", "arguments": {...}} or {"decision": "deny", "reason": "..."}'


@dataclass(frozen=True, slots=True)
class Data:
    """The data part of a message: any JSON, also a string, which is no text."""

    value: object


class TaskAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """An answer to what a task asked; with other arguments, those run instead."""

    decision: Literal["approve", "deny"]
    reason: Reason = ""
    arguments: dict[str, Any] | None = None


def body_of(message: Message, context: str, core: str | None, max_tokens: int) -> Body:
    """Return the syscall that a message asks for.

    Raises:
        Refusal: content that no syscall is made of.
        InvalidSyscall: a data part that is none.
    """
    content = content_of(message)
    if isinstance(content, str):
        return LlmChat(
            messages=(Turn("user", content),),
            core=core,
            max_tokens=max_tokens,
            overflow="shorten",
            stream=True,  # so that it can be subscribed to
            context=context,
        )
    data = content.value
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind not in KINDS:
        raise unknown_kind(kind)
    try:
        body: Body = msgspec.convert(data, Body)
    except msgspec.ValidationError as error:
        words, field = decode_failure(error)
        raise invalid(
            f"message.parts[0].data.{field}".rstrip("."),
            words,
            "send a syscall as /openapi.json has it, or text",
        ) from error
    return body


@contextmanager
def told_by_part(message: Message) -> Iterator[None]:
    """Have errors of a message's syscall name the part of the message that it is made of."""
    try:
        yield
    except KernelError as error:
        head, _, field = (error.field or "").partition(".")
        if head == "body":
            is_data = message.parts[0].data is not None
            error.field = f"message.parts[0].data.{field}" if is_data else "message.parts"
        raise


def answer_of(message: Message) -> TaskAnswer:
    """Return the decision that a message brings: nothing but a clear one is taken for one.

    Raises:
        Refusal: content that is no answer.
        InvalidSyscall: it is not clear what was decided.
    """
    content = content_of(message)
    said = _said(content.strip()) if isinstance(content, str) else content.value
    try:
        return msgspec.convert(said, TaskAnswer)
    except msgspec.ValidationError as error:
        raise invalid(
            "message.parts", f"this decides nothing: {error}", _HOW + _HOW_DATA
        ) from error


def _said(text: str) -> dict[str, str]:
    """Return the decision that a text says; one that says more than `approve` approves nothing."""
    found = _DECISION.match(text)
    if found is None:
        return {}
    decision, reason = found[1].lower(), text[found.end() :]
    if decision == "approve":
        return {"decision": decision} if not reason else {}
    return {"decision": decision, "reason": reason}


def content_of(message: Message) -> str | Data:
    """Return the text of a message, its parts joined by a line break; or its one data part.

    Raises:
        Refusal: it has files, or data beside other parts.
    """
    if message.role != "ROLE_USER":
        raise invalid("message.role", "agents' messages are not taken", "send ROLE_USER")
    texts = [_text_of(part, number) for number, part in enumerate(message.parts)]
    if None not in texts:
        return "\n".join(text for text in texts if text is not None)
    if len(message.parts) > 1:
        raise _unsupported(
            "message.parts", "a data part stands beside others", "send one part, or text alone"
        )
    return Data(_with_integers(message.parts[0].data))


def context_of(message: Message, otherwise: str) -> str:
    """Return the context that a message names, or the one that it gets.

    Raises:
        InvalidSyscall: it can be no context's name.
    """
    if not message.context_id:
        return otherwise
    try:
        if len(message.context_id) > MAX_CONTEXT_ID:
            raise invalid_context()
        return msgspec.convert(message.context_id, Name)
    except msgspec.ValidationError as error:
        raise invalid_context() from error


def invalid_context() -> InvalidSyscall:
    """Return the error of a contextId that names no program."""
    return invalid(
        "message.contextId",
        "this can be no context",
        f"leave it out, or use 1 to {MAX_CONTEXT_ID} letters, digits and . _ : @ / -",
    )


def check_configuration(configuration: SendConfiguration) -> None:
    """Return when a message can be answered as its sender wants it.

    Raises:
        Refusal: it wants to be called, or takes nothing that a task makes.
    """
    if configuration.task_push_notification_config is not None:
        raise no_push()
    modes = configuration.accepted_output_modes
    if modes and not any(_is_made(mode) for mode in modes):
        raise _unsupported(
            "configuration.acceptedOutputModes",
            "a task makes none of these",
            f"accept {TEXT} and {JSON}",
        )


def no_push() -> Refusal:
    """Return the error of who wants to be called."""
    return Refusal(
        "PUSH_NOTIFICATION_NOT_SUPPORTED",
        "the kernel calls nobody",
        "subscribe to the task, or ask for it again",
    )


def _text_of(part: Part, number: int) -> str | None:
    """Return the text of a part; None: it is data."""
    given = [each for each in (part.text, part.raw, part.url, part.data) if each is not None]
    if len(given) != 1:
        raise invalid(f"message.parts[{number}]", "a part is one thing", "give text, or data")
    if part.raw is not None or part.url is not None:
        raise _unsupported(
            f"message.parts[{number}]",
            "files are not read",
            "send text, or write the file into storage and name it",
        )
    return part.text


def _with_integers(value: object) -> object:
    """Return JSON in which whole numbers are integers: ProtoJSON knows floats alone."""
    if isinstance(value, dict):
        return {name: _with_integers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_integers(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value


def _unsupported(field: str, message: str, remedy: str) -> Refusal:
    return Refusal("CONTENT_TYPE_NOT_SUPPORTED", message, remedy, field)


def _is_made(mode: str) -> bool:
    name = mode.partition(";")[0].strip().lower()
    return name in ("*/*", "*", "text/*", "application/*", TEXT, JSON, "text", "json")
