"""`aios export trace`: a run of the kernel as a file for other tools."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from aios_broker.contract.errors import InvalidConfig, UnknownSyscall
from aios_broker.ledger.history import History
from aios_broker.ledger.lives import Life, lives_of
from aios_broker.ledger.runs import RunFilter, Runs
from aios_broker.postgres.database import Database
from aios_broker.views.trace import encoded_trace
from aios_broker.views.usage import undrained
from aios_broker.views.words import plural
from aios_cli.journal import ledger_url
from aios_cli.session import EXIT_CODES, Operator, command, current_config, database_url
from aios_cli.tables import say

_WHEN = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    file: str
    syscalls: int
    slices: int
    bytes: int
    older: datetime | None  # those that were submitted before then are left out; None: none are


def _show(exported: Exported) -> None:
    if exported.file == "-":
        return
    say(
        f"{exported.file}: {plural(exported.syscalls, 'syscall')}, "
        f"{plural(exported.slices, 'slice')}. Open it at https://ui.perfetto.dev or in "
        "chrome://tracing."
    )
    if exported.older is not None:
        say(
            f"there are more: those before {exported.older:%Y-%m-%dT%H:%M:%S} are left out "
            "(--limit, --until)",
            err=True,
        )


@click.group(epilog=EXIT_CODES)
def export() -> None:
    """Write what happened into a file, for other tools.

    \b
    Examples:
      aios export trace run.json --program report
    """  # noqa: D301 - \b keeps click from wrapping


@command(_show, name="trace")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--program", "-p", help="Of this program, with all that stand below it.")
@click.option("--agent", "-a", help="Of this agent.")
@click.option("--tenant", help="Of this tenant.")
@click.option("--hours", type=click.FloatRange(min=0), help="Submitted in the last hours.")
@click.option("--since", type=_WHEN, help="Submitted since a time (UTC).")
@click.option("--until", type=_WHEN, help="Submitted before a time (UTC).")
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(1, 200_000),
    default=10_000,
    show_default=True,
    help="The newest syscalls.",
)
async def trace(  # noqa: PLR0913  one parameter per option
    operator: Operator,
    file: Path,
    program: str | None,
    agent: str | None,
    tenant: str | None,
    hours: float | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> Exported:
    """Write a run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

    A program has its syscalls, each with its waits and its slices; a worker what ran in its slots.
    Everything comes from the ledger: the times of a syscall's waits and slices add up to its life,
    and what its slices used to what it was charged. FILE may be `-`: standard output.

    \b
    Examples:
      aios export trace run.json --program report --agent writer
      aios export trace today.json --hours 1
      aios export trace - --since 2026-11-28T09:00 --until 2026-11-28T10:00
    """  # noqa: D301 - \b keeps click from wrapping
    if hours is not None and since is not None:
        raise click.UsageError("--hours and --since say the same thing: give one of them")
    begin = datetime.now(UTC) - timedelta(hours=hours) if hours is not None else _utc(since)
    wanted = RunFilter(tenant, agent, program, begin, _utc(until))
    lives, older = await _read(operator, wanted, limit)
    if not lives:
        raise UnknownSyscall(
            "the ledger has no syscall of that description",
            field="program" if program else "since",
            remedy="`aios journal` shows what it has",
        )
    now = await operator.fleet.now()
    data = encoded_trace(lives, round(now.timestamp() * 1000))
    _write(file, data)
    slices = sum(len(life.slices) for life in lives)
    return Exported(str(file), len(lives), slices, len(data), older)


async def _read(
    operator: Operator, wanted: RunFilter, limit: int
) -> tuple[Sequence[Life], datetime | None]:
    url = ledger_url(current_config()) or database_url()
    async with aclosing(Database(url, name="aios-export")) as database:
        missing = await undrained(operator.connection, operator.keys)
        history = History(operator.connection, operator.keys, database)
        run = await Runs(history, database, operator.keys.prefix).newest(wanted, limit)
    if missing:
        say(
            f"{missing} entries of the journal are not in the ledger yet (`aios status`); the last "
            "of them are in the trace all the same",
            err=True,
        )
    return lives_of(run.events), run.older


def _write(file: Path, data: bytes) -> None:
    """Write the file.

    Raises:
        InvalidConfig: it cannot be written.
    """
    try:
        with click.open_file(str(file), "wb") as opened:
            opened.write(data)
    except OSError as error:
        raise InvalidConfig(
            f"{file} cannot be written: {error.strerror}",
            field="FILE",
            remedy="name another one",
        ) from error


def _utc(when: datetime | None) -> datetime | None:
    return None if when is None else when.replace(tzinfo=UTC)


export.add_command(trace)
