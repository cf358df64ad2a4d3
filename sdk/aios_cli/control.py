"""`aios kill | suspend | resume | nice`: what an operator does with syscalls."""

from collections.abc import Awaitable, Callable

import click

from aios_broker.contract.errors import Cancelled
from aios_broker.contract.names import Module
from aios_broker.queues.control import Control, Outcome
from aios_cli.lookup import find_live, parse_module
from aios_cli.session import EXIT_CODES, Operator, with_kernel
from aios_cli.tables import short_id, show_json

NICE_RANGE = click.IntRange(-20, 19)

Step = Callable[[Control, list[str], Module], Awaitable[list[Outcome]]]

_ids = click.argument("syscall_ids", metavar="ID...", nargs=-1, required=True)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(epilog=EXIT_CODES)
@_ids
@_json
def kill(syscall_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Cancel syscalls; whoever waits for them hears `cancelled` at once.

    A running one loses its lease, and its worker is told to stop. IDs may be abbreviated.
    """
    error = Cancelled("an operator cancelled it", remedy="send it again if it is still wanted")
    _apply(
        syscall_ids,
        lambda control, ids, module: control.cancel(ids, error, module=module),
        "cancelled",
        as_json=as_json,
    )


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
            click.echo(f"{short_id(job_id)} {done if outcome == 'done' else outcome}")
    if any(outcome != "done" for _, outcome in outcomes):
        raise SystemExit(1)
