"""Whether two syscalls of one id are the same one, sent again. Pure."""

from __future__ import annotations

from msgspec import Struct

from aios_broker.contract.errors import KernelError, KeyConflict
from aios_broker.contract.job import decode_job
from aios_broker.contract.syscall import Syscall, check_syscall

# What may differ when a syscall is sent again: the time that is left, a new token, its urgency,
# and the version, which encoding raises.
_PASSING = ("deadline_s", "token", "nice", "version")


def conflict_with(syscall: Syscall, data: bytes) -> KeyConflict | None:
    """Return the conflict of a syscall with the job that has its id already, or None."""
    try:
        first = decode_job(data, syscall.id)
    except KernelError as error:
        return _conflict(syscall, f"a job that cannot be read ({error})")
    return conflict_of(first, syscall)


def conflict_of(first: Syscall, again: Syscall) -> KeyConflict | None:
    """Return the conflict of two syscalls of one id, or None where they are the same.

    Raises:
        InvalidSyscall: one of them cannot be written.
    """
    if first.body == again.body and _who(first) == _who(again):
        return None
    if first.kind != again.kind:
        return _conflict(again, f"a syscall of kind {first.kind}")
    first, again = check_syscall(first), check_syscall(again)  # lists and tuples are the same
    for name in first.__struct_fields__:
        if name not in _PASSING and getattr(first, name) != getattr(again, name):
            where = _where(name, first, again)
            return _conflict(again, f"a syscall of kind {first.kind} with another {where}")
    return None


def _who(syscall: Syscall) -> tuple[str, str, str]:
    return syscall.tenant, syscall.agent, syscall.program


def _where(name: str, first: Syscall, again: Syscall) -> str:
    """Return the path of the first field that differs, at most two steps deep."""
    one, other = getattr(first, name), getattr(again, name)
    if not isinstance(one, Struct):
        return name
    differing = (
        field for field in one.__struct_fields__ if getattr(one, field) != getattr(other, field)
    )
    return f"{name}.{next(differing)}"


def _conflict(again: Syscall, stands_for: str) -> KeyConflict:
    return KeyConflict(
        f"this key was used before, for {stands_for}; this one is a {again.kind}",
        field="key",
        remedy="give each step a key of its own",
        syscall_id=again.id,
    )
