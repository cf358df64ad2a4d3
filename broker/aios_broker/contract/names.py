"""The small types that all of the contract is made of."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.errors import InvalidSyscall

MAX_TEXT_BYTES = 4 * 1024 * 1024  # of one encoded syscall; larger content belongs in storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = Sequence
else:

    class Row:
        """Several of a kind: an agent passes any sequence, what is read back is a tuple."""

        def __class_getitem__(cls, kind: object) -> object:
            return tuple[kind, ...]


Module = Literal["llm", "memory", "storage", "tool", "access"]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:@/-]+\Z")]
SyscallId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Text = Annotated[str, Meta(max_length=MAX_TEXT_BYTES)]

# Who acts is told by names: in the audit log, on the screen of who decides, in `tenant/agent`. So
# the name of an agent or a tenant does not begin like the operator's or the kernel's
# (`operator:ada`), in any case; it does not look like an option or a path; a tenant's has no slash.
_NOT_OURS = r"^(?!(?i:operator|kernel))"
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
NAME_RULE = (
    "use 1 to 128 letters, digits and ._:@/-, a letter or digit first and after each of :@/ (a "
    "tenant's without /), and begin neither with `operator` nor with `kernel`"
)
AgentName = Annotated[
    str,
    Meta(min_length=1, max_length=128, pattern=rf"{_NOT_OURS}{_WORD}(?:[:@/]{_WORD})*\Z"),
]
TenantName = Annotated[
    str, Meta(min_length=1, max_length=128, pattern=rf"{_NOT_OURS}{_WORD}(?:[:@]{_WORD})*\Z")
]
GroupName = Name
Verb = Literal["read", "write", "search", "share", "administer"]
GrantVerbs = Annotated[Row[Verb], Meta(min_length=1, max_length=5)]
Ttl = Annotated[float, Meta(gt=0.0, le=10 * 365 * 86_400.0)]  # s
SearchMode = Literal["semantic", "keyword", "hybrid"]
Query = Annotated[str, Meta(min_length=1, max_length=8_192)]
K = Annotated[int, Meta(ge=1, le=100)]  # how many are found


def refuse_blank(query: object) -> None:
    """Refuse a query that says nothing; one that is no text is left to its type.

    Raises:
        InvalidSyscall: nothing but space.
    """
    if isinstance(query, str) and query and not query.strip():
        raise InvalidSyscall(
            "the query is blank", field="body.query", remedy="say what is looked for"
        )


def tree_of(program: str) -> str:
    """Return the tree that a program stands in: what is before the first `/` of its name.

    A program and those that it began (`paper/search`) are one to whoever shares a kernel fairly.
    """
    return program.partition("/")[0] or program


class Owner(NamedTuple):
    """Whose a syscall is, and its id, its reply and its effects."""

    tenant: str
    agent: str


class Request(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an agent sends: a field that this version does not know is refused."""


def check_name(field: str, value: str) -> str:
    """Return the name of an agent or tenant; `field` says which.

    Raises:
        InvalidSyscall: it is none; names `field`.
    """
    try:
        return msgspec.convert(value, TenantName if field == "tenant" else AgentName)
    except msgspec.ValidationError as error:
        raise InvalidSyscall(
            f"{value!r} is no name: {error}",
            field=field,
            remedy=NAME_RULE,
        ) from error
