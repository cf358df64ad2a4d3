"""What can be piled up in Postgres, and how much of it there may be unless told otherwise.

Triggers count there, at each insert, whatever operation it is of (migrations/schema/limits.sql).
"""

from dataclasses import dataclass
from typing import Literal, get_args

from aios_broker.contract.errors import QuotaExceeded

ObjectKind = Literal[
    "notes",
    "note_bytes",
    "files",
    "file_bytes",
    "directories",
    "links",
    "mounts",
    "grants",
    "waiting_approvals",
    "agents",
    "groups",
]
OBJECT_KINDS: tuple[ObjectKind, ...] = get_args(ObjectKind)


@dataclass(frozen=True, slots=True)
class ObjectLimit:
    """How many there may be of a kind."""

    most: int | None  # unless the operator has said otherwise; None: a setting says it
    of: Literal["agent", "tenant"]  # whose they are
    words: str
    remedy: str  # what makes room


DEFAULT_LIMITS: dict[ObjectKind, ObjectLimit] = {
    "notes": ObjectLimit(100_000, "agent", "notes", "remove some (memory.remove)"),
    # Of all kept versions.
    "note_bytes": ObjectLimit(
        1024**3, "agent", "bytes of notes, old versions counted", "remove some (memory.remove)"
    ),
    "files": ObjectLimit(100_000, "agent", "files", "delete some (storage.delete)"),
    # Of all kept versions, each content once. Unless set: AIOS_STORAGE_MAX_BYTES.
    "file_bytes": ObjectLimit(
        None, "agent", "bytes of files, old versions counted", "delete some (storage.delete)"
    ),
    "directories": ObjectLimit(10_000, "agent", "directories", "delete some (storage.delete)"),
    "links": ObjectLimit(
        1_000, "agent", "links", "take some back (storage.unshare), or let them expire"
    ),
    "mounts": ObjectLimit(100, "agent", "mounts", "take some away (storage.unmount)"),
    "grants": ObjectLimit(10_000, "agent", "grants", "take some back (access.revoke)"),
    "waiting_approvals": ObjectLimit(
        1_000, "agent", "syscalls that wait for a person", "wait until some are decided"
    ),
    "agents": ObjectLimit(10_000, "tenant", "agents", "have some deleted"),
    "groups": ObjectLimit(1_000, "tenant", "groups", "delete some (access.group_delete)"),
}


def limit_met(kind: str, who: str, most: int) -> QuotaExceeded:
    """Return the error of an insert that would go over a limit.

    Args:
        kind: An `ObjectKind`, as the trigger names it.
        who: The agent or the tenant, as people say it.
        most: The limit that was met.
    """
    limit = next(one for name, one in DEFAULT_LIMITS.items() if name == kind)
    return QuotaExceeded(
        f"{who} has as many {limit.words} as it may: {most}",
        field=f"quota.{kind}",
        remedy=f"{limit.remedy}, or have the operator raise it (`aios quota limit`)",
    )
