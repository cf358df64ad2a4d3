"""Find syscalls by what an operator types, a whole id or the first digits of one; change them.

`aios kill | suspend | resume | nice`.
"""

import re
from collections.abc import Awaitable, Callable

import click
import msgspec

from aios_broker.contract.errors import Cancelled, InvalidSyscall, UnknownModule, UnknownSyscall
from aios_broker.contract.names import Module
from aios_broker.contract.reply import decode_reply
from aios_broker.contract.syscall import MODULES, State
from aios_broker.queues.control import Control, Outcome
from aios_broker.queues.ended import ended_ids, queues_of
from aios_broker.queues.records import JobView
from aios_broker.views.why import Ended
from aios_broker.views.words import SHORT_ID_DIGITS, short_id
from aios_cli.session import EXIT_CODES, Operator, with_kernel
from aios_cli.tables import say, show_json

ID_DIGITS = 32
MAX_ID_LENGTH = 256
SEARCH_LIMIT = 100_000  # jobs per module that an abbreviated id is looked for among
MATCHES_SHOWN = 4
NICE_RANGE = click.IntRange(-20, 19)

Step = Callable[[Control, list[str], Module], Awaitable[list[Outcome]]]

_ids = click.argument("syscall_ids", metavar="ID...", nargs=-1, required=True)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
    live = {
        view.job_id: view
        for module in MODULES
        for view in await operator.control.jobs(module, limit=SEARCH_LIMIT)
        if view.job_id.startswith(typed)
    }
    queues = await queues_of(operator.control)
    ended = await ended_ids(operator.connection, operator.keys, queues)
    matches = sorted({*live, *(each for each in ended if each.startswith(typed))})
    if not matches:
        raise _unknown(typed)
    if len(matches) > 1:
        shown = ", ".join(matches[:MATCHES_SHOWN]) + (", …" if matches[MATCHES_SHOWN:] else "")
        raise InvalidSyscall(
            f"{len(matches)} syscalls begin with {typed}: {shown}",
            field="id",
            remedy="type more digits",
        )
    return live.get(matches[0]) or await _ended(operator, matches[0])


def _check(typed: str) -> None:
    # Ours are hex digits; jobs that stock RQ tools enqueued are named as their producers like.
    if not re.fullmatch(rf"[A-Za-z0-9_.:-]{{{SHORT_ID_DIGITS},{MAX_ID_LENGTH}}}", typed):
        raise InvalidSyscall(
            f"{typed!r} is not an id",
            field="id",
            remedy=f"type {SHORT_ID_DIGITS} to {ID_DIGITS} of its digits, as `aios ps` shows them",
        )


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


@click.command(epilog=EXIT_CODES)
@_ids
@_json
def kill(syscall_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Cancel syscalls; whoever waits for them hears `cancelled` at once.

    A running one loses its lease, and its worker is told to stop. IDs may be abbreviated.
    """
    _apply(syscall_ids, _cancel, "cancelled", as_json=as_json)


async def cancel_one(operator: Operator, typed: str) -> tuple[str, Outcome]:
    """Cancel the syscall whose id begins so, as `aios kill` does; raise as `find_live`."""
    job = await find_live(operator, typed)
    [outcome] = await _cancel(operator.control, [job.job_id], parse_module(job.module))
    return job.job_id, outcome


async def _cancel(control: Control, job_ids: list[str], module: Module) -> list[Outcome]:
    error = Cancelled("an operator cancelled it", remedy="send it again if it is still wanted")
    return await control.cancel(job_ids, error, module=module)


@click.command(epilog=EXIT_CODES)
@_ids
@_json
def suspend(syscall_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Hold syscalls: take them out of the run queue until `aios resume`.

    A running generation is suspended with a snapshot at its next slice end, so that nothing of
    it is lost. Its deadline goes on. IDs may be abbreviated.
    """
    _apply(
        syscall_ids,
        lambda control, ids, module: control.hold(ids, module=module),
        "held",
        as_json=as_json,
    )


@click.command(epilog=EXIT_CODES)
@_ids
@_json
def resume(syscall_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Put held syscalls back into the run queue. IDs may be abbreviated."""
    _apply(
        syscall_ids,
        lambda control, ids, module: control.release(ids, module=module),
        "resumed",
        as_json=as_json,
    )


@click.command(epilog=EXIT_CODES, context_settings={"ignore_unknown_options": True})
@click.argument("nice_value", metavar="N", type=NICE_RANGE)
@_ids
@_json
def nice(nice_value: int, syscall_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Set the nice value of syscalls to N, -20 (first) to 19 (last).

    It counts under the policy `priority`. IDs may be abbreviated.

    \b
    Example:
      aios nice -5 3f2a91bc
    """  # noqa: D301 - \b keeps click from wrapping
    _apply(
        syscall_ids,
        lambda control, ids, module: control.nice(ids, nice_value, module=module),
        f"nice {nice_value}",
        as_json=as_json,
    )


def _apply(syscall_ids: tuple[str, ...], step: Step, done: str, *, as_json: bool) -> None:
    """Do the step to each syscall; all ids are looked up before the first one is changed."""

    async def work(operator: Operator) -> list[tuple[str, Outcome]]:
        jobs = [await find_live(operator, typed) for typed in syscall_ids]
        outcomes = []
        for job in jobs:
            [outcome] = await step(operator.control, [job.job_id], parse_module(job.module))
            outcomes.append((job.job_id, outcome))
        return outcomes

    outcomes = with_kernel(work)
    if as_json:
        show_json([{"job_id": job_id, "outcome": outcome} for job_id, outcome in outcomes])
    else:
        for job_id, outcome in outcomes:
            say(f"{short_id(job_id)} {done if outcome == 'done' else outcome}")
    if any(outcome != "done" for _, outcome in outcomes):
        raise SystemExit(1)
