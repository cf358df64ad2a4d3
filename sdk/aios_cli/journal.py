"""`aios journal`: every change of every syscall's state, as the kernel wrote it down."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from aios_broker.contract.transitions import TABLE
from aios_broker.ledger.history import Filter, HistoryEvent
from aios_broker.ledger.journal import Position
from aios_cli.happenings import follow, open_history, told
from aios_cli.human import short_id
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, Interrupted, with_kernel


@click.command(epilog=EXIT_CODES)
@click.argument("syscall_id", metavar="[ID]", required=False)
@click.option("--agent", "-a", help="Only this agent's syscalls.")
@click.option("--program", "-p", help="Only this program's syscalls.")
@click.option("--tenant", help="Only this tenant's syscalls.")
@click.option("--module", "-m", help="Only this module's syscalls.")
@click.option("--event", "-e", type=click.Choice(list(TABLE)), help="Only this kind of change.")
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(0, 100_000),
    default=100,
    show_default=True,
    help="How many of the latest changes.",
)
@click.option("--follow", "-f", "following", is_flag=True, help="Go on with what happens now.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def journal(  # noqa: PLR0913  one parameter per option
    syscall_id: str | None,
    agent: str | None,
    program: str | None,
    tenant: str | None,
    module: str | None,
    event: str | None,
    limit: int,
    *,
    following: bool,
    as_json: bool,
) -> None:
    """Print what happened: each change of a syscall's state, oldest first.

    It is read from the ledger (Postgres) and from the journal (Redis), where the latest changes
    are until the scheduler has entered them. ID may be abbreviated.

    \b
    Examples:
      aios journal 3f2a91bc
      aios journal --agent writer --event fail --limit 20
      aios journal --follow --json
    """  # noqa: D301 - \b keeps click from wrapping
    wanted = Filter(syscall_id, agent, program, tenant, module, event)

    async def work(operator: Operator) -> None:
        async with open_history(operator) as history:
            position = await history.end() if following and not limit else Position()
            if limit:
                latest = await history.last(wanted, limit)
                _print(latest, as_json=as_json)
                position = latest[-1].transition.position if latest else await history.end()
            if not following:
                return
            async for found in follow(history, position):
                _print([each for each in found if wanted.matches(each)], as_json=as_json)

    try:
        with_kernel(work, as_json=as_json)
    except Interrupted:
        if not following:
            raise


def line_of(happening: HistoryEvent) -> str:
    """Return a change as one line."""
    change, metadata = happening.transition, happening.metadata
    at = change.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    mark = "  (not an arrow of the transition table)" if change.anomaly else ""
    return (
        f"{at}  {change.module:<5} {change.event:<8} {short_id(change.job_id)}  "
        f"{metadata.agent}/{metadata.program}  {told(happening)}{mark}"
    ).rstrip()


def _print(happenings: Sequence[HistoryEvent], *, as_json: bool) -> None:
    for each in happenings:
        if as_json:
            record = {**msgspec.to_builtins(each.transition), **msgspec.to_builtins(each.metadata)}
            click.echo(msgspec.json.encode(record).decode())
        else:
            click.echo(line_of(each))
