"""From what an agent asks to a valid syscall. Pure: shared by all shells and transports."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import msgspec

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.syscall import (
    MAX_DEADLINE_S,
    MAX_TEXT_BYTES,
    Body,
    Message,
    Syscall,
    decode_syscall,
    encode_syscall,
    id_from_key,
    new_id,
)

Messages = str | Sequence[Message | Mapping[str, str]]
RawBody = Mapping[str, object]  # a body as it stands on the wire, not checked yet
Item = str | Mapping[str, Any]  # one call of a map: a prompt or text, or all its arguments

_SYSCALL_ID = re.compile(r"[0-9a-f]{32}")
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for every call of an agent, until `with_options` says otherwise."""

    agent: str
    program: str = "main"
    tenant: str = "default"
    token: str = ""
    nice: int = 0
    timeout_s: float | None = None  # how long the caller waits
    deadline_s: float | None = None  # how long the kernel may take; None: timeout_s, else 600
    key: str | None = None  # idempotency: the same key, the same syscall
    core: str | None = None  # for llm calls that name none


class ChatOptions(TypedDict, total=False):
    """The fields of `LlmChat` beside its messages; ranges and defaults stand there."""

    core: str | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]
    stream: bool
    return_ids: bool


def chat_body(messages: Messages, **fields: Unpack[ChatOptions]) -> RawBody:
    """Generate the next message of a conversation; a plain string is one user message."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return {**fields, "type": "llm.chat", "messages": turns}


def echo_body(text: str = "") -> RawBody:
    """Return the text: the whole path through the kernel and no work."""
    return {"type": "tool.echo", "text": text}


def call_body(build: Callable[..., RawBody], *args: object, **kwargs: object) -> RawBody:
    """Return the body that these arguments of a verb make."""
    try:
        return build(*args, **kwargs)
    except TypeError as error:
        raise InvalidSyscall(f"wrong arguments: {error}", field="body",
                             remedy="see help() of the call") from error  # fmt: skip


def item_body(build: Callable[..., RawBody], item: Item) -> RawBody:
    """Return the body of one call of a map."""
    return call_body(build, **item) if isinstance(item, Mapping) else call_body(build, item)


def build_syscall(
    options: Options, body: RawBody | Body, *, index: int | None = None, stream: bool | None = None
) -> Syscall:
    """Return a syscall that the kernel's contract allows. `index`: its place in a map.

    Raises:
        InvalidSyscall: an unknown field or a bad value; `field` is its path. Nothing was sent.
        UnknownModule: no module of this version takes such a body.
    """
    try:
        data = _encoder.encode({
            "id": _id(options, index), "body": _raw(options, body, stream=stream),
            "agent": options.agent, "program": options.program, "tenant": options.tenant,
            "token": options.token, "nice": options.nice, "deadline_s": _deadline_s(options),
        })  # fmt: skip
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidSyscall(
            f"the syscall cannot be written as JSON: {error}", field="body",
            remedy="use strings, numbers, lists and dicts",
        ) from error  # fmt: skip
    syscall = decode_syscall(data)
    if len(data) > MAX_TEXT_BYTES:
        encode_syscall(syscall)  # which refuses it, with the numbers
    return syscall


def check_options(options: Options) -> Options:
    """Refuse names, nice values and times that no syscall could carry."""
    for field in ("timeout_s", "deadline_s"):
        value = getattr(options, field)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise InvalidSyscall(
                f"{value!r} is not a time", field=field, remedy="give seconds, more than 0"
            )
    key: object = options.key
    if key is not None and (not isinstance(key, str) or not key):
        raise InvalidSyscall(f"{key!r} is not a key", field="key",
                             remedy="give a text that names this step of your program")  # fmt: skip
    build_syscall(options, chat_body("") if options.core is not None else echo_body())
    return options


def check_id(syscall_id: str) -> str:
    """Return the id of a syscall; refuse what cannot be one."""
    if _SYSCALL_ID.fullmatch(syscall_id):
        return syscall_id
    raise InvalidSyscall(f"{syscall_id!r} is not the id of a syscall", field="id",
                         remedy="give the 32 hex digits of Call.id")  # fmt: skip


def _id(options: Options, index: int | None) -> str:
    if options.key is None:
        return new_id()
    key = options.key if index is None else f"{options.key}\x1f{index}"
    return id_from_key(options.tenant, options.agent, key)


def _deadline_s(options: Options) -> float:
    if options.deadline_s is not None:
        return options.deadline_s
    if options.timeout_s is not None:
        return min(options.timeout_s, MAX_DEADLINE_S)
    return DEFAULT_DEADLINE_S


def _raw(options: Options, body: RawBody | Body, *, stream: bool | None) -> object:
    raw = dict(body) if isinstance(body, Mapping) else msgspec.to_builtins(body)
    if isinstance(raw, dict) and raw.get("type") == "llm.chat":
        if options.core is not None and raw.get("core") is None:
            raw["core"] = options.core
        if stream is not None:
            raw["stream"] = stream
    return raw


def _default_deadline_s() -> float:
    fields: Iterable[msgspec.structs.FieldInfo] = msgspec.structs.fields(Syscall)
    return next(float(field.default) for field in fields if field.name == "deadline_s")


DEFAULT_DEADLINE_S = _default_deadline_s()
