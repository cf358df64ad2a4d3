"""`aios journal | strace`: what happened, and what happens now, from the kernel's history."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import click
import hiredis
import msgspec

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig, KernelNotRunning
from aios_broker.contract.money import shown
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import Body
from aios_broker.contract.transitions import TABLE, TERMINAL
from aios_broker.ledger.history import Filter, History, HistoryEvent
from aios_broker.ledger.journal import Position, read_use
from aios_broker.postgres.database import Database
from aios_broker.queues.records import JobView
from aios_broker.views.texts import Texts, read_texts
from aios_broker.views.why import Ended
from aios_broker.views.words import plural, short_id
from aios_cli.session import (
    EXIT_CODES,
    Interrupted,
    Operator,
    current_config,
    find_kernel,
    with_kernel,
)
from aios_cli.syscalls import find
from aios_cli.tables import narrow_seconds, say, show_json
from aios_local.supervisor.record import read_record

POLL_S = 0.2
LEAST_WIDTH = 8


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
        with_kernel(work)
    except Interrupted:
        if not following:
            raise


def line_of(event: HistoryEvent) -> str:
    """Return a change as one line."""
    change, metadata = event.transition, event.metadata
    mark = "  (not an arrow of the transition table)" if change.anomaly else ""
    return (
        f"{clock(change.at)}  {change.module:<5} {change.event:<8} {short_id(change.job_id)}  "
        f"{metadata.agent}/{metadata.program}  {told(event)}{mark}"
    ).rstrip()


def clock(at: datetime) -> str:
    """Return a time of day, to the millisecond, as it is here."""
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def _print(events: Sequence[HistoryEvent], *, as_json: bool) -> None:
    for each in events:
        if as_json:
            record = {**msgspec.to_builtins(each.transition), **msgspec.to_builtins(each.metadata)}
            show_json(record, on_one_line=True)
        else:
            say(line_of(each))


@dataclass(frozen=True, slots=True)
class Trace:
    """One syscall that has ended: what was asked and what was answered, as far as it is kept."""

    event: HistoryEvent
    texts: Texts


@click.command(epilog=EXIT_CODES)
@click.argument("syscall_id", metavar="[ID]", required=False)
@click.option("--agent", "-a", help="Only this agent's syscalls.")
@click.option("--program", "-p", help="Only this program's syscalls.")
@click.option("--tenant", help="Only this tenant's syscalls.")
@click.option("--module", "-m", help="Only this module's syscalls.")
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after so many syscalls.")
@click.option(
    "--width",
    "-s",
    type=click.IntRange(min=LEAST_WIDTH),
    default=60,
    show_default=True,
    help="Characters shown of each text.",
)
@click.option("--verbose", "-v", is_flag=True, help="Print every change of state as well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def strace(  # noqa: PLR0913  one parameter per option
    syscall_id: str | None,
    agent: str | None,
    program: str | None,
    tenant: str | None,
    module: str | None,
    count: int | None,
    width: int,
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    """Follow syscalls: print each one when it ends, with its arguments, its answer and its times.

    With an ID (it may be abbreviated): what has happened to that one so far, and on to its end.
    Texts are read from Redis, where a finished syscall is kept for a minute, a failed one an hour.

    \b
    Examples:
      aios strace --agent writer
      aios strace 3f2a91bc -v
      aios strace --module llm --count 10 --json
    """  # noqa: D301 - \b keeps click from wrapping

    async def work(operator: Operator) -> None:
        async with open_history(operator) as history:
            tracer = _Tracer(operator, history, width, verbose, as_json)
            if syscall_id is not None:
                await tracer.one(await find(operator, syscall_id))
            else:
                await tracer.all(Filter(None, agent, program, tenant, module), count)

    with suppress(Interrupted):  # the usual way to leave it
        with_kernel(work)


_ENDS = frozenset(event for event, (_, state) in TABLE.items() if state in TERMINAL)


@dataclass(frozen=True, slots=True)
class _Tracer:
    """Prints syscalls as they end."""

    operator: Operator
    history: History
    width: int
    verbose: bool
    as_json: bool

    async def one(self, syscall: JobView | Ended) -> None:
        """Print the history of one syscall, to its end."""
        wanted = Filter(syscall.job_id)
        past = await self.history.last(wanted, 10_000)
        if await self._print(past) or isinstance(syscall, Ended):
            return
        position = past[-1].transition.position if past else Position()
        async for found in follow(self.history, position):
            if await self._print([each for each in found if wanted.matches(each)]):
                return

    async def all(self, wanted: Filter, count: int | None) -> None:
        """Print all that are wanted and end from now on, or `count` of them."""
        printed = 0
        async for found in follow(self.history, await self.history.end()):
            left = None if count is None else count - printed
            printed += await self._print([each for each in found if wanted.matches(each)], left)
            if count is not None and printed >= count:
                return

    async def _print(self, events: Sequence[HistoryEvent], most: int | None = None) -> int:
        """Print what there is to print; return how many syscalls have ended, at most `most`."""
        ends = 0
        for each in events:
            if ends == most:
                break
            if self.verbose and not self.as_json:
                say(line_of(each))
            if each.transition.event not in _ENDS:
                continue
            ends += 1
            trace = await self._read(each)
            if self.as_json:
                show_json(_record(trace), on_one_line=True)
            else:
                say(as_line(trace, self.width))
        return ends

    async def _read(self, event: HistoryEvent) -> Trace:
        job_id = event.transition.job_id
        kept = await read_texts(self.operator.connection, self.operator.keys, [job_id])
        return Trace(event, kept[job_id])


def as_line(trace: Trace, width: int) -> str:
    """Return a syscall as strace shows one: the call, its answer, and how long it took."""
    change, metadata = trace.event.transition, trace.event.metadata
    arguments = "..." if trace.texts.syscall is None else _shown(trace.texts.syscall.body, width)
    return (
        f"{clock(change.at)} {short_id(change.job_id)} {metadata.agent}/{metadata.program} "
        f"{metadata.kind}({arguments}) = {_answer(trace.texts.reply, width)}"
    )


def _shown(body: Body, width: int) -> str:
    """Return the fields that differ from their defaults."""
    fields = msgspec.to_builtins(body)
    fields.pop("type", None)
    messages = fields.pop("messages", None)
    parts = [_quoted(messages[-1]["content"], width)] if messages else []
    if messages and len(messages) > 1:
        parts[0] = f"[{plural(len(messages) - 1, 'message')}, {parts[0]}]"
    return ", ".join(
        [*parts, *(f"{name}={_value(value, width)}" for name, value in fields.items())]
    )


def _value(value: object, width: int) -> str:
    if isinstance(value, str):
        return _quoted(value, width)
    return _cut(msgspec.json.encode(value).decode(), width)


def _quoted(text: str, width: int) -> str:
    return msgspec.json.encode(_cut(text, width)).decode()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _answer(reply: Reply | None, width: int) -> str:
    """Return the answer and its times, as far as they are kept."""
    if reply is None:
        return "?"
    if reply.error is not None:
        answer = f"-1 {reply.error.code}: {reply.error.message}"
    else:
        fields = msgspec.to_builtins(reply.result)
        fields.pop("type", None)
        answer = _value(fields.get("text", fields), width)
    times = reply.timings
    return (
        f"{answer} <waited {narrow_seconds(times.queued_s)}, ran {narrow_seconds(times.ran_s)}, "
        f"{plural(times.slices, 'slice')}>"
    )


def _record(trace: Trace) -> dict[str, object]:
    return {
        "at": trace.event.transition.at,
        "job_id": trace.event.transition.job_id,
        "event": trace.event.transition.event,
        "syscall": trace.texts.syscall,
        "reply": trace.texts.reply,
        **msgspec.to_builtins(trace.event.metadata),
    }


@asynccontextmanager
async def open_history(operator: Operator) -> AsyncIterator[History]:
    """Lend a reader of the kernel's history: its journal, and its ledger where it keeps one.

    Raises:
        InvalidConfig: It keeps one, and where it is was not said.
    """
    url = ledger_url(current_config())
    if url is None:
        await _refuse_half_a_history(operator)
        yield History(operator.connection, operator.keys)
        return
    async with aclosing(Database(url, name="aios-cli")) as database:
        yield History(operator.connection, operator.keys, database)


def ledger_url(config: KernelConfig) -> str | None:
    """Return where the ledger is: as set, else as the kernel on this machine has it."""
    kernel = find_kernel()
    if kernel.database_url is None and config.redis_url is not None:
        with suppress(KernelNotRunning):
            local = read_record(config.state_dir)
            return local.database_url if local.redis_url == config.redis_url else None
    return kernel.database_url


async def _refuse_half_a_history(operator: Operator) -> None:
    """Raise where entries have left the journal: a scheduler has entered them in a ledger."""
    try:
        told = await operator.connection.execute("XINFO", "STREAM", operator.keys.journal)
    except hiredis.ReplyError:
        return  # nothing has happened yet
    stream = dict(zip(told[::2], told[1::2], strict=True))
    if stream[b"entries-added"] > stream[b"length"]:
        raise InvalidConfig(
            "the kernel keeps a ledger, and what is in it cannot be read without its address",
            field="AIOS_DATABASE_URL",
            remedy="set it to the URL of the kernel's Postgres",
        )


async def follow(history: History, position: Position) -> AsyncIterator[list[HistoryEvent]]:
    """Yield what happens behind a position, for ever; an empty list where nothing did."""
    while True:
        found = await history.after(position)
        if found:
            position = found[-1].transition.position
        yield found
        if not found:
            await asyncio.sleep(POLL_S)


def told(event: HistoryEvent) -> str:
    """Return what a transition says beside its event: who did it, and what was used so far."""
    change, metadata = event.transition, event.metadata
    if change.event in ("submit", "adopt"):
        return metadata.kind
    if change.event == "claim":
        return f"by {change.who}, attempt {change.attempt}"
    if change.event == "move":
        return "from {} to {}".format(*change.detail.partition(" ")[::2])
    used = read_use(change.detail)
    parts = [used.code] if used.code else []
    if used.tokens or used.ran_ms:
        parts.append(f"{plural(used.tokens, 'token')}, ran {narrow_seconds(used.ran_ms / 1000)}")
    if used.core:
        parts.append(f"on {used.core}")
    if used.currency:
        parts.append(shown(used.cost_nano, used.currency))
    return ", ".join(parts)
