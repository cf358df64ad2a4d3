"""What a syscall needs beside a slot: a core, and what only so many may hold at once."""

import contextlib
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.names import Name

NeedKind = Literal["core", "tool", "program", "lock"]
# core: a worker that serves it. tool: a place at it, of the whole deployment. program: another
# program of the same agent that must be admitted. lock: one of the tenant's, one holder at a time.
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
