"""`aios strace`: the syscalls of agents as they end, each with its arguments and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click
import msgspec

from aios_broker.contract.errors import KernelError
from aios_broker.contract.job import decode_job
from aios_broker.contract.reply import Reply, decode_reply
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.contract.transitions import TABLE, TERMINAL
from aios_broker.ledger.history import Filter, History, HistoryEvent
from aios_broker.ledger.journal import Position
from aios_cli.happenings import follow, open_history
from aios_cli.human import narrow_seconds, plural, short_id
from aios_cli.journal import line_of
from aios_cli.lookup import Ended, find
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, Interrupted, with_kernel

LEAST_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Trace:
    """One syscall that has ended: what was asked and what was answered, as far as it is kept."""

    happening: HistoryEvent
    syscall: Syscall | None
    reply: Reply | None


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
            tracer = _Tracer(operator, history, width, verbose=verbose, as_json=as_json)
            if syscall_id is not None:
                found = await find(operator, syscall_id)
                ended = isinstance(found, Ended)
                await tracer.one(found.job_id, ended=ended)
            else:
                await tracer.all(Filter(None, agent, program, tenant, module), count)

    try:
        with_kernel(work, as_json=as_json)
    except Interrupted:
        return  # the usual way to leave it


class _Tracer:
    """Prints syscalls as they end."""

    def __init__(
        self, operator: Operator, history: History, width: int, *, verbose: bool, as_json: bool
    ) -> None:
        self._operator = operator
        self._history = history
        self._width = width
        self._verbose = verbose
        self._as_json = as_json

    async def one(self, job_id: str, *, ended: bool) -> None:
        """Print the history of one syscall, to its end."""
        wanted = Filter(job_id)
        past = await self._history.last(wanted, 10_000)
        if await self._print(past) or ended:
            return
        position = past[-1].transition.position if past else Position()
        async for found in follow(self._history, position):
            if await self._print([each for each in found if wanted.matches(each)]):
                return

    async def all(self, wanted: Filter, count: int | None) -> None:
        """Print all that are wanted and end from now on, or `count` of them."""
        printed = 0
        async for found in follow(self._history, await self._history.end()):
            left = None if count is None else count - printed
            printed += await self._print([each for each in found if wanted.matches(each)], left)
            if count is not None and printed >= count:
                return

    async def _print(self, happenings: Sequence[HistoryEvent], most: int | None = None) -> int:
        """Print what there is to print; return how many syscalls have ended, at most `most`."""
        ends = 0
        for each in happenings:
            if ends == most:
                break
            if self._verbose and not self._as_json:
                click.echo(line_of(each))
            if TABLE[each.transition.event][1] not in TERMINAL:  # type: ignore[index]
                continue
            ends += 1
            trace = await self._read(each)
            click.echo(_as_json(trace) if self._as_json else as_line(trace, self._width))
        return ends

    async def _read(self, happening: HistoryEvent) -> Trace:
        job_id = happening.transition.job_id
        data, reply = await self._operator.connection.execute(
            "HMGET", self._operator.keys.job(job_id), "data", "aios_reply"
        )
        return Trace(happening, _syscall(data, job_id), _reply(reply))


def _syscall(data: bytes | None, job_id: str) -> Syscall | None:
    try:
        return decode_job(data, job_id) if data is not None else None
    except KernelError:
        return None  # a foreign job: its line says who and what


def _reply(data: bytes | None) -> Reply | None:
    try:
        return decode_reply(data) if data is not None else None
    except msgspec.DecodeError:
        return None


def as_line(trace: Trace, width: int) -> str:
    """Return a syscall as strace shows one: the call, its answer, and how long it took."""
    change, metadata = trace.happening.transition, trace.happening.metadata
    at = change.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    call = f"{metadata.kind}({_arguments(trace.syscall, width)})"
    return (
        f"{at} {short_id(change.job_id)} {metadata.agent}/{metadata.program} "
        f"{call} = {_answer(trace, width)}{_times(trace.reply)}"
    )


def _arguments(syscall: Syscall | None, width: int) -> str:
    return "..." if syscall is None else _shown(syscall.body, width)


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
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _quoted(text: str, width: int) -> str:
    shown = text if len(text) <= width else f"{text[: width - 1]}…"
    return msgspec.json.encode(shown).decode()


def _answer(trace: Trace, width: int) -> str:
    reply = trace.reply
    if reply is None:
        return "?"
    if reply.error is not None:
        return f"-1 {reply.error.code}: {reply.error.message}"
    result = msgspec.to_builtins(reply.result)
    if "text" in result:
        return _quoted(result["text"], width)
    return _value({name: value for name, value in result.items() if name != "type"}, width)


def _times(reply: Reply | None) -> str:
    if reply is None:
        return ""
    times = reply.timings
    return (
        f" <waited {narrow_seconds(times.queued_s)}, ran {narrow_seconds(times.ran_s)}, "
        f"{plural(times.slices, 'slice')}>"
    )


def _as_json(trace: Trace) -> str:
    record = {
        "at": trace.happening.transition.at,
        "job_id": trace.happening.transition.job_id,
        "event": trace.happening.transition.event,
        "syscall": None
        if trace.syscall is None
        else msgspec.structs.replace(trace.syscall, token=""),
        "reply": trace.reply,
        **msgspec.to_builtins(trace.happening.metadata),
    }
    return msgspec.json.encode(record).decode()
