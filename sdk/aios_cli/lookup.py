"""Find syscalls by what an operator types: a whole id, or the first digits of one."""

import re
from dataclasses import dataclass

import click
import msgspec

from aios_broker.contract.errors import InvalidSyscall, UnknownModule, UnknownSyscall
from aios_broker.contract.names import Module, Name
from aios_broker.contract.reply import Reply, decode_reply
from aios_broker.contract.syscall import MODULES, State
from aios_broker.queues.records import JobView
from aios_cli.session import Operator
from aios_cli.tables import SHORT_ID_DIGITS

ID_DIGITS = 32
MAX_ID_LENGTH = 256
SEARCH_LIMIT = 100_000  # jobs per module that an abbreviated id is looked for among
ENDED_REGISTRIES = ("finished", "failed", "canceled")  # RQ's names
MATCHES_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Ended:
    """A syscall that has ended and whose reply has not expired. `reply` None: only the state."""

    job_id: str
    state: State
    reply: Reply | None


def parse_module(name: str) -> Module:
    """Return the module of that name.

    Raises:
        UnknownModule: there is none.
    """
    if name not in MODULES:
        raise UnknownModule(
            f"there is no module {name!r}",
            field="module",
            remedy=f"use one of {', '.join(MODULES)}",
        )
    module: Module = msgspec.convert(name, Module)
    return module


class ModuleName(click.ParamType[Module]):
    """A parameter that names a module."""

    name = "text"

    def convert(
        self, value: str, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> Module:
        """Return the module."""
        return parse_module(value)


def check_name(field: str, value: str) -> str:
    """Return the name of an agent or tenant.

    Raises:
        InvalidSyscall: it is none; names `field`.
    """
    try:
        return msgspec.convert(value, Name)
    except msgspec.ValidationError as error:
        raise InvalidSyscall(
            f"{value!r} is no name: {error}",
            field=field,
            remedy="use 1 to 128 letters, digits and ._:@/-",
        ) from error


async def find_live(operator: Operator, typed: str) -> JobView:
    """Return the one syscall that has not ended and whose id begins with `typed`.

    Raises:
        InvalidSyscall: not an id, too short, or several match.
        UnknownSyscall: none matches.
    """
    found = await find(operator, typed)
    if isinstance(found, JobView):
        return found
    raise UnknownSyscall(
        f"syscall {found.job_id} has ended: {found.state}",
        field="id",
        remedy="nothing is left to change; `aios why` shows how it ended",
        syscall_id=found.job_id,
    )


async def find(operator: Operator, typed: str) -> JobView | Ended:
    """Return the one syscall whose id begins with `typed`, live or ended; raise as `find_live`."""
    _check(typed)
    view = await operator.control.job(typed)
    if view is not None:
        return view
    if len(typed) >= ID_DIGITS:
        return await _ended(operator, typed)
    live = [
        view
        for module in MODULES
        for view in await operator.control.jobs(module, limit=SEARCH_LIMIT)
        if view.job_id.startswith(typed)
    ]
    ended = await _ended_ids(operator, typed) - {view.job_id for view in live}
    matches = sorted([*(view.job_id for view in live), *ended])
    if len(matches) > 1:
        shown = ", ".join(matches[:MATCHES_SHOWN]) + (", …" if matches[MATCHES_SHOWN:] else "")
        raise InvalidSyscall(
            f"{len(matches)} syscalls begin with {typed}: {shown}",
            field="id",
            remedy="type more digits",
        )
    if live:
        return live[0]
    if ended:
        return await _ended(operator, ended.pop())
    raise _unknown(typed)


def _check(typed: str) -> None:
    # Ours are hex digits; jobs that stock RQ tools enqueued are named as their producers like.
    if not re.fullmatch(rf"[A-Za-z0-9_.:-]{{{SHORT_ID_DIGITS},{MAX_ID_LENGTH}}}", typed):
        raise InvalidSyscall(
            f"{typed!r} is not an id",
            field="id",
            remedy=f"type {SHORT_ID_DIGITS} to {ID_DIGITS} of its digits, as `aios ps` shows them",
        )


async def _ended_ids(operator: Operator, typed: str) -> set[str]:
    found: set[str] = set()
    for module in MODULES:
        for name in ENDED_REGISTRIES:
            members = await operator.connection.execute(
                "ZRANGE", operator.keys.registry(name, module), 0, -1
            )
            found |= {member.decode() for member in members if member.startswith(typed.encode())}
    return found


async def _ended(operator: Operator, job_id: str) -> Ended:
    """Read how a job ended; raise UnknownSyscall where nothing is left of it."""
    state, reply = await operator.peek(job_id)
    if state == "unknown":
        raise _unknown(job_id)
    return Ended(job_id, msgspec.convert(state, State), decode_reply(reply) if reply else None)


def _unknown(typed: str) -> UnknownSyscall:
    return UnknownSyscall(
        f"no syscall {typed} is known",
        field="id",
        remedy="`aios ps` lists those that have not ended; replies are kept for a minute, "
        "failures for an hour",
    )
