"""`aios submit`: one syscall from the command line, its answer as it comes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import click
import msgspec

from aios_broker.client.pending import REPLY_GRACE_S, Pending
from aios_broker.contract.errors import Cancelled, KernelError, from_wire
from aios_broker.contract.llm import ToolCall
from aios_broker.contract.reply import (
    ChatResult,
    Chunk,
    ContextResult,
    EchoResult,
    EmbedResult,
    Reply,
)
from aios_broker.contract.syscall import Syscall, decode_syscall, id_from_key, new_id
from aios_cli.chat_options import take_chat_fields, with_chat_options
from aios_cli.human import plural, seconds
from aios_cli.lookup import find
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, CommandFailed, exit_code_of, with_kernel
from aios_cli.tables import show_json

DEFAULT_AGENT = "cli"
ATTACH_TIMEOUT_S = 86_400.0  # as long as a deadline may be
SHOWN_NUMBERS = 6  # of a vector

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. None: the contract's default."""

    text: str | None
    tool: str | None
    attach: str | None
    agent: str
    program: str
    embed: bool
    nice: int | None
    deadline_s: float | None
    key: str | None
    stream: bool
    detach: bool
    as_json: bool
    chat: dict[str, object]  # fields of the body


@click.command(epilog=EXIT_CODES)
@click.argument("text", metavar="[PROMPT]", required=False)
@click.option("--tool", metavar="NAME", help="Call this tool instead of the model: echo.")
@click.option("--attach", metavar="ID", help="Wait for a syscall that was submitted before.")
@click.option("--agent", default=DEFAULT_AGENT, show_default=True, help="As which agent.")
@click.option("--program", default="main", show_default=True, help="In which of its programs.")
@click.option("--embed", is_flag=True, help="Turn the text into a vector; with --json shown whole.")
@with_chat_options
@click.option("--nice", type=int, metavar="N", help="-20 (first) to 19 (last); 0.")
@click.option("--deadline-s", type=float, metavar="S", help="Fails after this long (600).")
@click.option("--key", help="Idempotency key: the same key is the same syscall, run once.")
@click.option("--stream/--no-stream", default=True, help="Print the answer while it is made.")
@click.option("--detach", is_flag=True, help="Print the id and do not wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply as JSON; no streaming.")
def submit(**given: object) -> None:
    """Submit a syscall and print its answer.

    PROMPT is a message to the model; `-` reads it from standard input. Ctrl-C cancels the
    syscall, unless it was attached to.

    \b
    Examples:
      aios submit "What is the capital of France?"
      aios submit --max-tokens 400 --temperature 0.8 --seed 7 "Tell a story."
      aios submit --schema '{"type": "integer"}' "How many legs has a spider?"
      aios submit --n 3 --temperature 1 "Name a colour."
      aios submit --tool echo hello
      id=$(aios submit --detach "Tell a story."); aios submit --attach $id
    """  # noqa: D301 - \b keeps click from wrapping
    chat = take_chat_fields(given)
    options = msgspec.convert({**given, "chat": chat}, Options)
    try:
        syscall = None if options.attach else syscall_of(options)
    except KernelError as error:
        raise CommandFailed(error, as_json=options.as_json) from error

    async def work(operator: Operator) -> Reply | None:
        if syscall is None:
            return await _attach(operator, options)
        return await _submit(operator, syscall, options)

    reply = with_kernel(work, as_json=options.as_json)
    if reply is not None:
        _conclude(reply, options)


def syscall_of(options: Options) -> Syscall:
    """Build and check the syscall.

    Raises:
        InvalidSyscall: a value out of its range; `field` names it.
        UnknownModule: a tool that is not built.
    """
    if options.text is None:
        raise click.UsageError("a PROMPT is missing (or --attach ID)")
    text = sys.stdin.read() if options.text == "-" else options.text
    syscall_id = id_from_key("default", options.agent, options.key) if options.key else new_id()
    fields = {
        "id": syscall_id,
        "agent": options.agent,
        "program": options.program,
        "nice": options.nice,
        "deadline_s": options.deadline_s,
        "body": _body(options, text),
    }
    return decode_syscall(msgspec.json.encode(_given(fields)))


def _body(options: Options, text: str) -> Fields:
    if options.tool is not None:
        return {"type": f"tool.{options.tool}", "text": text}
    if options.embed:
        return {"type": "llm.embed", "texts": [text], "core": options.chat.get("core")}
    return {
        "type": "llm.chat",
        "messages": [{"role": "user", "content": text}],
        "stream": options.stream and _can_stream(options),
        **options.chat,
    }


def _can_stream(options: Options) -> bool:
    """Whether the answer can be printed as it comes: one that is certain, and for a person."""
    several = {"n", "beam_width", "tools"} & options.chat.keys()
    return not (options.as_json or options.detach or several)


def _given(fields: Fields) -> Fields:
    """Leave out what was not given: the contract has the defaults."""
    return {name: value for name, value in fields.items() if value is not None}


async def _submit(operator: Operator, syscall: Syscall, options: Options) -> Reply | None:
    async with operator.client() as client:
        pending = client.submit(syscall)
        await pending.taken()
        if options.detach:
            client.let_go(pending)
            _show_id(syscall.id, options)
            return None
        try:
            return await _hear(pending, syscall.deadline_s + REPLY_GRACE_S, options)
        except asyncio.CancelledError:
            error = Cancelled("its caller went away (Ctrl-C)")
            await operator.control.cancel([syscall.id], error, module=syscall.module)
            click.echo(f"\ncancelled {syscall.id}", err=True)
            raise


def _show_id(syscall_id: str, options: Options) -> None:
    if options.as_json:
        show_json({"id": syscall_id})
    else:
        click.echo(syscall_id)


async def _attach(operator: Operator, options: Options) -> Reply:
    assert options.attach is not None
    found = await find(operator, options.attach)
    async with operator.client() as client:
        pending = client.attach(found.job_id)
        return await _hear(pending, ATTACH_TIMEOUT_S, options)


async def _hear(pending: Pending, timeout_s: float, options: Options) -> Reply:
    """Wait for the reply; print what streams in meanwhile."""
    if options.as_json:
        return await pending.reply_within(timeout_s)
    printed = Printed()
    printing = asyncio.create_task(printed.follow(pending))
    try:
        reply = await pending.reply_within(timeout_s)
        await printing
    finally:
        printing.cancel()
    for line in _lines(reply, printed.characters):
        click.echo(line)
    return reply


class Printed:
    """What has been printed of an answer: its text from the first character on, without a hole."""

    def __init__(self) -> None:
        self.characters = 0

    async def follow(self, pending: Pending) -> None:
        """Print the text as it comes, until the reply is here."""
        seen = 0
        while True:
            news = pending.news()
            while seen < len(pending.chunks):
                self._print(pending.chunks[seen])
                seen += 1
            if pending.reply is not None:
                return
            await asyncio.shield(news)

    def _print(self, chunk: Chunk) -> None:
        # One who attached in the middle hears no beginning: the reply will bring it all.
        if chunk.offset == self.characters:
            click.echo(chunk.text, nl=False)
            self.characters += len(chunk.text)


def _lines(reply: Reply, printed: int) -> Iterator[str]:
    """Yield what is still to be printed of a result."""
    match reply.result:
        case ChatResult(choices=choices) if choices:
            for number, choice in enumerate(choices, 1):
                yield from (f"[{number}] {choice.text}", *map(_call_line, choice.tool_calls))
        case ChatResult(text=text, tool_calls=calls):
            if not calls or text:
                yield text[printed:]
            yield from map(_call_line, calls)
        case EchoResult(text=text):
            yield text[printed:]
        case EmbedResult(vectors=vectors):
            for vector in vectors:
                shown = ", ".join(f"{number:.4f}" for number in vector[:SHOWN_NUMBERS])
                yield f"[{shown}, ...] {len(vector)} numbers"
        case ContextResult(context=name, message_count=count, tokens=tokens):
            yield f"{name}: {plural(count, 'message')}, {plural(tokens, 'token')}"
        case None:
            pass
        case other:
            yield msgspec.json.format(msgspec.json.encode(other)).decode()


def _call_line(call: ToolCall) -> str:
    return f"{call.name}({call.arguments})"


def _conclude(reply: Reply, options: Options) -> None:
    """Print the reply or its error; on a terminal, what the answer took."""
    if options.as_json:
        show_json(reply)
        raise SystemExit(exit_code_of(from_wire(reply.error)) if reply.error is not None else 0)
    if reply.error is not None:
        raise CommandFailed(from_wire(reply.error))
    result = reply.unwrap()
    if isinstance(result, ChatResult) and sys.stderr.isatty():
        timings = reply.timings
        click.echo(
            f"{plural(result.usage.output_tokens, 'token')}, waited {seconds(timings.queued_s)}, "
            f"ran {seconds(timings.ran_s)} in {plural(timings.slices, 'slice')}",
            err=True,
        )
