"""What an agent asks of the kernel.

A `Syscall` is written once, by the SDK, and never changed: the scheduler and the workers keep
facts about it elsewhere (its place in the queue, attempts, timings). Exactly one `Reply`
answers it.
"""

import contextlib
import difflib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.access import AccessBody
from aios_broker.contract.errors import (
    InvalidSyscall,
    KernelError,
    UnknownModule,
    UnsupportedVersion,
)
from aios_broker.contract.exec import ExecBody
from aios_broker.contract.json_text import NUL, has_more_values, has_nul, is_nested_deeper
from aios_broker.contract.llm import LlmBody, LlmChat
from aios_broker.contract.memory import MemoryAdd, MemoryBody, MemoryContext
from aios_broker.contract.names import (
    MAX_TEXT_BYTES,
    NAME_RULE,
    AgentName,
    Module,
    Name,
    Owner,
    SyscallId,
    TenantName,
    Text,
)
from aios_broker.contract.storage import StorageBody, StorageOperate
from aios_broker.contract.tokens import shown_without_token
from aios_broker.contract.tools import ToolBody, ToolRun
from aios_broker.contract.traces import Traceparent

# What a syscall needs beside a slot: a core, and what only so many may hold at once.
NeedKind = Literal["core", "tool", "program", "lock", "model"]
# core: a worker that serves it. tool: a place at it, of the whole deployment. program: another
# program of the same agent that must be admitted. lock: one of the tenant's, one holder at a time.
# model: it waits for llm syscalls of its own, so that it takes no place from those that do not.
MAX_NEEDS = 8  # of one syscall: a claim looks at each of them


class Need(Struct, frozen=True, gc=False):
    """One need, such as `core:small` or `lock:report`.

    Raises:
        InvalidSyscall: the name is none of `Name`, or too long; `field` is `needs`.
    """

    kind: NeedKind
    name: str

    def __post_init__(self) -> None:
        """Refuse a name that could be read as something else."""
        try:
            msgspec.convert(self.name, Name)
        except msgspec.ValidationError as error:
            raise InvalidSyscall(
                f"{str(self)!r} names no {self.kind}: {error}",
                field="needs",
                remedy="names have 1 to 128 letters, digits and . _ : @ / -",
            ) from error

    def __str__(self) -> str:
        """Return it as the job's record has it."""
        return f"{self.kind}:{self.name}"


def checked_needs(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Return needs that a syscall can have together.

    Raises:
        InvalidSyscall: more than MAX_NEEDS, one of them twice, or more than one core.
    """
    found = tuple(needs)
    if len(found) > MAX_NEEDS:
        raise InvalidSyscall(
            f"it has {len(found)} needs, the limit is {MAX_NEEDS}",
            field="needs",
            remedy="let one lock stand for what is always needed together",
        )
    if len(set(found)) < len(found):
        twice = next(need for need in found if found.count(need) > 1)
        raise InvalidSyscall(f"{str(twice)!r} is named twice", field="needs", remedy="name it once")
    if sum(need.kind == "core" for need in found) > 1:
        raise InvalidSyscall(
            "it needs more than one core", field="needs", remedy="send one syscall for each core"
        )
    return found


def known_needs(text: str) -> tuple[Need, ...]:
    """Return the needs in a job's record; those that this release does not know are left out."""
    needs = []
    for word in text.split():
        kind, _, name = word.partition(":")
        # What is unknown is a newer release's, or a foreign hand's: admission bars the job.
        with contextlib.suppress(msgspec.ValidationError, InvalidSyscall):
            needs.append(Need(msgspec.convert(kind, NeedKind), name))
    return tuple(needs)


def core_of(needs: Iterable[Need]) -> str:
    """Return the core that is needed, or the empty string: any."""
    return next((need.name for need in needs if need.kind == "core"), "")


CONTRACT_VERSION = 1  # raised when a kernel of this release could misread what a newer one sends
DEFAULT_DEADLINE_S = 600.0  # counted from submission
MAX_DEADLINE_S = 86_400.0

# What reads and writes JSON calls itself for each level and gives up at a depth that differs by
# Python and by where it is called from (3.11: about 990 levels, 3.12: 1,490, 3.13: 9,990). A limit
# far below keeps one process from writing what another cannot read.
MAX_LEVELS = 128  # of one encoded syscall, itself and its body included
# Whoever serves many agents reads their syscalls in its one loop, and stands still meanwhile.
MAX_VALUES = 100_000

MODULES: tuple[Module, ...] = get_args(Module)
# Those that one worker process serves together: they share the database and the embedding model.
STATE_MODULES: tuple[Module, ...] = ("memory", "storage", "access")

# queued: waits in the run queue. suspended: it ran, and waits there with its snapshot.
# held: an operator took it out of the run queue. parked: it waits for a person's approval.
State = Literal[
    "queued", "running", "suspended", "held", "parked", "finished", "failed", "cancelled"
]


class ToolEcho(Struct, frozen=True, forbid_unknown_fields=True, tag="tool.echo", gc=False):
    """Return the text: the whole path and no work. For health checks and benchmarks."""

    text: Text = ""


StateBody = MemoryBody | StorageBody | AccessBody
ToolModuleBody = ToolBody | ExecBody | ToolEcho
Body = LlmBody | StateBody | ToolModuleBody
_BODIES: tuple[type[Body], ...] = get_args(Body)
_KIND_OF: dict[type[Body], str] = {body: str(body.__struct_config__.tag) for body in _BODIES}
KINDS: tuple[str, ...] = tuple(_KIND_OF.values())
_BODY_OF = {kind: body for body, kind in _KIND_OF.items()}
EXPECTED = "give what is expected there"  # a door says where its own users read of that


# Trees of their own in the SDK that stand in the queue of another module.
_QUEUE_OF = {"context": "llm", "exec": "tool"}


def body_of_kind(kind: str) -> type[Body] | None:
    """Return the body that has this tag, such as `memory.add`; None: there is none."""
    return _BODY_OF.get(kind)


def module_of(kind: str) -> str:
    """Return the module that a kind such as `memory.add` belongs to, built or not."""
    family = kind.partition(".")[0]
    return _QUEUE_OF.get(family, family)


_MODULE_OF: dict[type[Body], Module] = {
    body: msgspec.convert(module_of(kind), Module) for body, kind in _KIND_OF.items()
}


class Syscall(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One request of one program to one module."""

    id: SyscallId  # 32 hex digits; also the idempotency key
    agent: AgentName
    body: Body
    program: Name = "main"  # one run of the agent towards one task
    tenant: TenantName = "default"
    token: Annotated[str, Meta(max_length=256)] = ""  # exchanged for the agent: never queued
    nice: Annotated[int, Meta(ge=-20, le=19)] = 0  # lower goes first
    deadline_s: Annotated[float, Meta(gt=0.0, le=MAX_DEADLINE_S)] = DEFAULT_DEADLINE_S
    traceparent: Traceparent = ""  # the trace that it is part of; empty: its program's own
    # The syscall whose module asks for it; empty: none.
    asked_by: Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    version: int = CONTRACT_VERSION

    def __repr__(self) -> str:
        """Return it without its token: it may come into a log."""
        return shown_without_token(self)

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.tenant, self.agent)

    @property
    def kind(self) -> str:
        """The tag of the body, such as `llm.chat`."""
        return _KIND_OF[type(self.body)]

    @property
    def module(self) -> Module:
        """The module whose queue it belongs in."""
        return _MODULE_OF[type(self.body)]

    @property
    def core(self) -> str:
        """The core that its worker must serve, or the empty string: any.

        The core that a memory or storage syscall names is that of its own llm syscalls.
        """
        body = self.body
        if not isinstance(body, LlmBody):
            return ""
        return body.core or ""

    @property
    def width(self) -> int:
        """How many places of a core it takes at a time: its answers, each with its beams."""
        body = self.body
        return body.n * (body.beam_width or 1) if isinstance(body, LlmChat) else 1

    @property
    def needs(self) -> tuple[Need, ...]:
        """What its job needs to run, beside a slot."""
        if self.module in STATE_MODULES:
            return (_MODEL,) if _asks_a_model(self.body) else ()
        if isinstance(self.body, ToolRun):
            return (Need("tool", self.body.tool),)  # its locks are known to who has its card
        core = self.core if self.module == "llm" else ""
        return (Need("core", core),) if core else ()


_MODEL = Need("model", "any")


def _asks_a_model(body: Body) -> bool:
    match body:
        case MemoryAdd(evolve=evolve):
            return evolve
        case MemoryContext(core=core):
            return core is not None
        case _:
            return isinstance(body, StorageOperate)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Syscall)


def new_id() -> str:
    """Return a fresh syscall id."""
    return os.urandom(16).hex()


def name_digest(tenant: str, agent: str, name: str) -> str:
    """Return 32 hex digits that stand for a name of an agent's."""
    material = "\x1f".join((tenant, agent, name)).encode(errors="surrogatepass")
    return hashlib.blake2b(material, digest_size=16).hexdigest()


def encode_syscall(syscall: Syscall) -> bytes:
    """Return the JSON of a syscall.

    Raises:
        InvalidSyscall: over the size limit, nested too deeply, with a NUL character, or it holds
            what JSON cannot: an object of another type, half of a surrogate pair.
    """
    try:
        data = _encoder.encode(syscall)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSyscall(
            f"it cannot be written as JSON: {error}",
            field="body",
            remedy="build it of strings, numbers, lists and dicts, with valid Unicode text",
            syscall_id=syscall.id,
        ) from error
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidSyscall(
            f"the syscall has {len(data)} bytes, the limit is {MAX_TEXT_BYTES}",
            field="body",
            remedy="shorten it, or keep large content in storage and name it",
            syscall_id=syscall.id,
        )
    refuse_shape(data, syscall.id)
    if has_nul(data):
        refuse_nul(msgspec.json.decode(data), syscall.id)
    if b"null" in data:  # as which JSON writes what is no number
        _refuse_not_finite(syscall)
    return data


def refuse_shape(data: bytes | str, syscall_id: str | None = None) -> None:
    """Return when a syscall in JSON has as many values, and as deep, as anybody may have to read.

    Raises:
        InvalidSyscall: more, or deeper.
    """
    if has_more_values(data, MAX_VALUES):
        what = f"has more than {MAX_VALUES} values in its lists and objects"
    elif is_nested_deeper(data, MAX_LEVELS):
        what = f"is nested more than {MAX_LEVELS} levels deep"
    else:
        return
    raise InvalidSyscall(
        f"it {what}",
        field="body",
        remedy="make its lists and objects flatter and shorter, or pass them as text",
        syscall_id=syscall_id,
    )


def _refuse_not_finite(syscall: Syscall) -> None:
    """Return when no number of a syscall is NaN or infinite.

    Raises:
        InvalidSyscall: one is; `field` is its path.
    """
    path = _path_of_not_finite(msgspec.to_builtins(syscall))
    if path is not None:
        raise InvalidSyscall(
            "it is not a number, or infinite, which JSON has no word for",
            field=path,
            remedy="give a number, or leave it out",
            syscall_id=syscall.id,
        )


def _path_of_not_finite(value: object) -> str | None:
    """Return the path of the first number that is none; None: all are."""
    if isinstance(value, float):
        return None if math.isfinite(value) else ""
    return _first_within(value, _path_of_not_finite, float)


def _first_within(
    value: object, find: Callable[[object], str | None], leaf: type[object]
) -> str | None:
    """Return the path of the first thing that is found within a list or an object of JSON.

    It is put together on the way back: of 100,000 values that are looked at one has a path.
    """
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    looked_at = (leaf, dict, list, tuple)
    for name, part in parts:
        if isinstance(part, looked_at) and (found := find(part)) is not None:
            return f"{name}.{found}" if found else str(name)
    return None


def refuse_nul(value: object, syscall_id: str | None = None) -> None:
    """Return when no text of a JSON value has a NUL character.

    Raises:
        InvalidSyscall: one has; `field` is its path.
    """
    field = _field_with_nul(value)
    if field is not None:
        raise InvalidSyscall(
            "a text of it has a NUL character, which no text may have",
            field=field or "syscall",
            remedy="leave it out; send bytes to storage in base64",
            syscall_id=syscall_id,
        )


def _field_with_nul(value: object) -> str | None:
    """Return the path of the first text with a NUL in a JSON value; None: there is none."""
    if isinstance(value, str):
        return "" if NUL in value else None
    if isinstance(value, dict) and any(NUL in key for key in value):
        return ""
    return _first_within(value, _field_with_nul, str)


def decode_syscall(data: bytes | str, *, is_flat: bool = False) -> Syscall:
    """Read and validate a syscall. `is_flat`: that it is neither too deep nor too wide is known.

    Raises:
        UnsupportedVersion: `version` is not ours.
        UnknownModule: the body's tag is of no module, or of one that is not built.
        InvalidSyscall: anything else (a NUL character, more than MAX_LEVELS levels or MAX_VALUES
            values); `field` is the path of what is wrong.
    """
    if not is_flat:
        refuse_shape(data)
    try:
        if has_nul(data):
            refuse_nul(msgspec.json.decode(data))
        syscall = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _explain(data, error) from error
    if syscall.version != CONTRACT_VERSION:
        raise unsupported_version(syscall.version, syscall.id)
    return syscall


def check_syscall(syscall: Syscall) -> Syscall:
    """Validate one that was built in Python (constructors do not check): encode and read back."""
    return decode_syscall(encode_syscall(syscall), is_flat=True)


def unsupported_version(version: object, syscall_id: str | None = None) -> UnsupportedVersion:
    """Return the error for a payload of another version of the contract."""
    return UnsupportedVersion(
        f"this kernel reads version {CONTRACT_VERSION} of the contract, not {version!r}",
        field="version",
        remedy="use an SDK and a kernel of the same release",
        syscall_id=syscall_id,
    )


class _Loose(Struct):
    id: object = None
    version: object = CONTRACT_VERSION
    body: object = None


_NAMED_FIELD = re.compile(r"(?:missing required|contains unknown) field `(.*)`$")


def _explain(data: bytes | str, error: Exception) -> KernelError:
    try:
        loose = msgspec.json.decode(data, type=_Loose)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return InvalidSyscall(
            f"not a syscall: {error}", field="syscall", remedy="send one JSON object"
        )
    syscall_id = loose.id if isinstance(loose.id, str) else None
    if loose.version != CONTRACT_VERSION:
        return unsupported_version(loose.version, syscall_id)
    kind = loose.body.get("type") if isinstance(loose.body, dict) else None
    if isinstance(kind, str) and kind not in KINDS:
        return unknown_kind(kind, syscall_id)
    message, field = decode_failure(error)
    return InvalidSyscall(
        message,
        field=field or "syscall",
        remedy=_remedy(message, field, kind),
        syscall_id=syscall_id,
    )


def _remedy(message: str, field: str, kind: object) -> str:
    above, _, name = field.rpartition(".")
    if name in ("agent", "tenant", "owner"):
        return NAME_RULE
    if "missing required" in message:
        return "add it"
    if "unknown field" in message and above == "body" and isinstance(kind, str):
        names = [each.name for each in msgspec.structs.fields(_BODY_OF[kind])]
        near = difflib.get_close_matches(name, names, 1)
        return (
            "".join(f"did you mean `{each}`? " for each in near) + f"{kind} has {', '.join(names)}"
        )
    return EXPECTED


def decode_failure(error: Exception) -> tuple[str, str]:
    """Return what msgspec says is wrong, and the path of the field that is; empty: all of it."""
    message, _, path = str(error).partition(" - at `$")
    named = _NAMED_FIELD.search(message)
    parts = (path.rstrip("`").removeprefix("."), named[1] if named else "")
    return message, ".".join(part for part in parts if part)


def unknown_kind(kind: str, syscall_id: str | None = None) -> UnknownModule:
    """Return the error for a body whose tag no module of this version takes."""
    module = module_of(kind)
    why = (
        f"module {module!r} has no operation {kind!r}"
        if module in MODULES
        else f"no module {module!r} is served"
    )
    family = kind.partition(".")[0] + "."
    known = [one for one in KINDS if one.startswith(family)] or list(MODULES)
    return UnknownModule(
        f"{why} in this version",
        field="body.type",
        remedy=f"use one of {', '.join(known)}",
        syscall_id=syscall_id,
    )
