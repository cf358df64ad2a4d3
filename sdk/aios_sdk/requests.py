"""From what an agent asks to a valid syscall. Pure: shared by all shells and transports."""

import base64
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from aios_broker.contract.access import AccessRegister
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.ids import Ids
from aios_broker.contract.llm import (
    Format,
    Message,
    Tool,
)
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.names import MAX_TEXT_BYTES, GrantVerbs, Owner
from aios_broker.contract.storage import (
    Encoding,
    StorageAppend,
    StorageCreate,
    StorageShare,
    StorageWrite,
)
from aios_broker.contract.syscall import (
    DEFAULT_DEADLINE_S,
    EXPECTED,
    MAX_DEADLINE_S,
    Body,
    Syscall,
    decode_syscall,
    encode_syscall,
)
from aios_broker.contract.tokens import new_token
from aios_sdk.openai_words import OPTIONS, refuse_other_options, tool, tool_choice, turn
from aios_sdk.tools import tool_name

Messages = str | Sequence[Message | Mapping[str, object]]
RawBody = Mapping[str, object]  # a body as it stands on the wire, not checked yet
Item = str | Mapping[str, Any]  # one call of a map: a prompt or text, or all its arguments

TAKES_CORE = ("llm.", "context.")  # the kinds that the agent's own core is put into
_SYSCALL_ID = re.compile(r"[0-9a-f]{32}")
_encoder = msgspec.json.Encoder()
_NOBODYS = Ids(b"", Owner("", ""))  # of a syscall that is checked and never sent


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for every call of an agent, until `with_options` says otherwise."""

    agent: str
    program: str = "main"
    tenant: str = "default"
    token: str = field(default="", repr=False)
    nice: int = 0
    timeout_s: float | None = None  # how long the caller waits
    deadline_s: float | None = None  # how long the kernel may take; None: timeout_s, else 600
    key: str | None = None  # idempotency: the same key, the same syscall
    core: str | None = None  # for llm calls that name none
    traceparent: str | None = None  # the trace of its calls; None: OpenTelemetry's, where it is on

    @property
    def owner(self) -> Owner:
        """Whose the calls are."""
        return Owner(self.tenant, self.agent)


class ChatOptions(TypedDict, total=False):
    """The fields of `LlmChat` beside its messages; ranges and defaults stand there."""

    core: str | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]
    stream: bool
    return_ids: bool
    logprobs: int | None
    logit_bias: Mapping[int, float]
    n: int
    beam_width: int | None
    length_penalty: float
    format: Format | Mapping[str, object] | None
    tools: Sequence[Tool | Mapping[str, object]]
    tool_choice: str | Mapping[str, object]
    lora: str | None
    overflow: Literal["refuse", "compact", "shorten"]
    context: str | None


def chat_body(messages: Messages, **fields: Unpack[ChatOptions]) -> RawBody:
    """Generate the next message of a conversation; a plain string is one user message.

    Messages and tools may also be dicts as OpenAI's API has them.
    """
    body = {**fields, "type": "llm.chat", "messages": _turns(messages)}
    if not OPTIONS.keys().isdisjoint(body):
        refuse_other_options(body)
    if "tools" in body:
        body["tools"] = _each(tool, fields["tools"])
    if "tool_choice" in body:
        body["tool_choice"] = tool_choice(fields["tool_choice"])
    return body


def embed_body(texts: str | Sequence[str], *, core: str | None = None) -> RawBody:
    """Turn texts into vectors of length 1."""
    listed = [texts] if isinstance(texts, str) else texts
    return {"type": "llm.embed", "texts": listed, "core": core}


def count_body(
    texts: str | Sequence[str] = (),
    *,
    messages: Messages = (),
    tools: Sequence[Tool | Mapping[str, object]] = (),
    core: str | None = None,
) -> RawBody:
    """Count how many tokens each text adds to a prompt, and what a chat has for one."""
    listed = [texts] if isinstance(texts, str) else texts
    turns = _turns(messages)
    return {
        "type": "llm.count",
        "texts": listed,
        "core": core,
        "messages": turns,
        "tools": _each(tool, tools),
    }


def context_set_body(
    messages: Messages, *, context: str = "main", core: str | None = None
) -> RawBody:
    """Replace a context's messages."""
    turns = _turns(messages)
    return {"type": "context.set", "messages": turns, "context": context, "core": core}


def context_expand_body(
    messages: Messages, *, context: str = "main", core: str | None = None
) -> RawBody:
    """Add messages at the end of a context."""
    turns = _turns(messages)
    return {"type": "context.expand", "messages": turns, "context": context, "core": core}


def echo_body(text: str = "") -> RawBody:
    """Return the text: the whole path through the kernel and no work."""
    return {"type": "tool.echo", "text": text}


def tool_call_body(
    tool: str | Callable[..., object],
    arguments: Mapping[str, object] | None = None,
    *,
    version: str | None = None,
) -> RawBody:
    """Run a tool: its name, or the function that `@tool` made one; arguments by their names."""
    name = tool if isinstance(tool, str) else tool_name(tool)
    return {"type": "tool.call", "tool": name, "arguments": arguments or {}, "version": version}


class NoteFields(TypedDict, total=False):
    """The fields of `MemoryAdd` beside its content; ranges and defaults stand there."""

    keywords: Sequence[str]
    tags: Sequence[str]
    category: str
    context: str
    links: Sequence[str]
    metadata: dict[str, object]
    ttl_s: float | None
    dedupe: bool


def note_body(content: str, **fields: Unpack[NoteFields]) -> MemoryAdd:
    """Add a note; with `dedupe` not a second one with the same content: `existing` says so."""
    return MemoryAdd(content, **fields)


def evolving_note_body(
    content: str, *, core: str | None = None, **fields: Unpack[NoteFields]
) -> MemoryAdd:
    """Add a note that a model labels, links, and lets its neighbours change by."""
    return MemoryAdd(content, evolve=True, core=core, **fields)


def create_body(path: str, content: str | bytes = "", *, owner: str | None = None) -> StorageCreate:
    """Make a new file, of text or of bytes."""
    text, encoding = encoded(content)
    return StorageCreate(path, text, encoding, owner=owner)


def write_body(
    path: str, content: str | bytes, *, if_version: int | None = None, owner: str | None = None
) -> StorageWrite:
    """Replace a file's content, or make the file. Over content that is there it may need approval.

    `if_version`: refuse with VersionConflict if it is of another version; 0: only if there is none.
    """
    text, encoding = encoded(content)
    return StorageWrite(path, text, encoding, if_version, owner=owner)


def append_body(
    path: str, content: str | bytes, *, if_version: int | None = None, owner: str | None = None
) -> StorageAppend:
    """Add to the end of a file, or make the file. `if_version`: as for `write`."""
    text, encoding = encoded(content)
    return StorageAppend(path, text, encoding, if_version, owner=owner)


def share_body(
    path: str,
    *,
    group: str | None = None,
    agent: str | None = None,
    verbs: GrantVerbs = ("read", "search"),
    ttl_s: float | None = None,
) -> StorageShare:
    """Grant verbs on a file or a directory to a group or an agent."""
    return StorageShare(path, group, agent, verbs=verbs, ttl_s=ttl_s)


def link_body(path: str, *, ttl_s: float | None = None) -> StorageShare:
    """Make a link that reads one file until it expires (a day unless set)."""
    return StorageShare(path, link=True, ttl_s=ttl_s)


def register_body(
    agent: str, *, administrator: bool = False, ttl_s: float | None = None
) -> AccessRegister:
    """Make an agent known, and give it a token, which is made here: the kernel hears its digest."""
    return AccessRegister(agent, administrator, ttl_s, token=new_token())


def encoded(content: str | bytes) -> tuple[str, Encoding]:
    """Return content as it travels: text as it is, bytes in base64."""
    if isinstance(content, bytes):
        return base64.b64encode(content).decode(), "base64"
    return content, "utf-8"


Build = Callable[..., RawBody | Body]


def call_body(path: str, build: Build, *args: object, **kwargs: object) -> RawBody | Body:
    """Return the body that these arguments of the verb at a path such as `llm.chat` make."""
    try:
        return build(*args, **kwargs)
    except TypeError as error:
        raise InvalidSyscall(
            f"wrong arguments: {error}", field="body", remedy=f"help(me.{path}) lists them"
        ) from error


def item_body(path: str, build: Build, item: Item) -> RawBody | Body:
    """Return the body of one call of a map."""
    if not isinstance(item, str) and isinstance(item, Mapping):
        return call_body(path, build, **item)
    return call_body(path, build, item)


def build_syscall(
    options: Options,
    body: RawBody | Body,
    ids: Ids,
    *,
    index: int | None = None,
    stream: bool | None = None,
) -> Syscall:
    """Return a syscall that the kernel's contract allows.

    `ids` are those of its agent; `index` is its place in a map.

    Raises:
        InvalidSyscall: an unknown field or a bad value; `field` is its path. Nothing was sent.
        UnknownModule: no module of this version takes such a body.
    """
    try:
        data = _encoder.encode(
            {
                "id": _id(options, ids, index),
                "body": _raw(options, body, stream=stream),
                "agent": options.agent,
                "program": options.program,
                "tenant": options.tenant,
                "token": options.token,
                "nice": options.nice,
                "deadline_s": _deadline_s(options),
                "traceparent": _traceparent(options),
            }
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidSyscall(
            f"the syscall cannot be written as JSON: {error}",
            field="body",
            remedy="use strings, numbers, lists and dicts",
        ) from error
    try:
        syscall = decode_syscall(data)
    except InvalidSyscall as error:
        if error.remedy == EXPECTED:
            error.remedy = f"help(me.{_kind(body)}) tells what"
        raise
    if len(data) > MAX_TEXT_BYTES:
        encode_syscall(syscall)  # which refuses it, with the numbers
    return syscall


def _kind(body: object) -> str:
    if isinstance(body, msgspec.Struct):
        return str(body.__struct_config__.tag)
    return str(body.get("type")) if isinstance(body, Mapping) else "llm.chat"


def check_options(options: Options) -> Options:
    """Refuse names, nice values and times that no syscall could carry."""
    for name in ("timeout_s", "deadline_s"):
        value = getattr(options, name)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise InvalidSyscall(
                f"{value!r} is not a time", field=name, remedy="give seconds, more than 0"
            )
    key: object = options.key
    if key is not None and (not isinstance(key, str) or not key):
        raise InvalidSyscall(
            f"{key!r} is not a key",
            field="key",
            remedy="give a text that names this step of your program",
        )
    body = chat_body("") if options.core is not None else echo_body()
    build_syscall(options, body, _NOBODYS)
    return options


def check_id(syscall_id: str) -> str:
    """Return the id of a syscall; refuse what cannot be one."""
    if _SYSCALL_ID.fullmatch(syscall_id):
        return syscall_id
    raise InvalidSyscall(
        f"{syscall_id!r} is not the id of a syscall",
        field="id",
        remedy="give the 32 hex digits of Call.id",
    )


def _turns(messages: Messages) -> object:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return _each(turn, messages)


def _each(taken: Callable[[object], object], several: object) -> object:
    """Return a list of what each is taken for; what is no list is left for the contract."""
    return list(map(taken, several)) if isinstance(several, Sequence) else several


def _id(options: Options, ids: Ids, index: int | None) -> str:
    if options.key is None:
        return ids.fresh()
    return ids.from_key(options.key if index is None else f"{options.key}\x1f{index}")


def _deadline_s(options: Options) -> float:
    if options.deadline_s is not None:
        return options.deadline_s
    if options.timeout_s is not None:
        return min(options.timeout_s, MAX_DEADLINE_S)
    return DEFAULT_DEADLINE_S


def _traceparent(options: Options) -> str:
    return _current_traceparent() if options.traceparent is None else options.traceparent


def _current_traceparent() -> str:
    """Return where this task or thread is in a trace; empty: in none, or nobody traces here.

    A program that never loaded OpenTelemetry is in none: so this loads nothing.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ""
    from opentelemetry import trace  # noqa: PLC0415  not installed with the SDK

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def _raw(options: Options, body: RawBody | Body, *, stream: bool | None) -> object:
    raw: object = body
    if type(body) is not dict:
        raw = dict(body) if isinstance(body, Mapping) else msgspec.to_builtins(body)
    if (options.core is None and stream is None) or not isinstance(raw, dict):
        return raw
    if not str(raw.get("type")).startswith(TAKES_CORE):
        return raw
    raw = raw.copy()
    if options.core is not None and raw.get("core") is None:
        raw["core"] = options.core
    if stream is not None and raw.get("type") == "llm.chat":
        raw["stream"] = stream
    return raw
