"""The small types that all of the contract is made of."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

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

# Of the state modules: memory, storage, access.
AgentName = Name
GroupName = Name
Verb = Literal["read", "write", "search", "share", "administer"]
GrantVerbs = Annotated[Row[Verb], Meta(min_length=1, max_length=5)]
Ttl = Annotated[float, Meta(gt=0.0, le=10 * 365 * 86_400.0)]  # s
SearchMode = Literal["semantic", "keyword", "hybrid"]
Query = Annotated[str, Meta(min_length=1, max_length=8_192)]
K = Annotated[int, Meta(ge=1, le=100)]  # how many are found


class Owner(NamedTuple):
    """Whose a syscall is, and its id, its reply and its effects."""

    tenant: str
    agent: str


class Request(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an agent sends: a field that this version does not know is refused."""
