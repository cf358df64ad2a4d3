"""`aios submit`: one syscall from the command line, its answer as it comes."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click
import msgspec

from aios_broker.client.pending import REPLY_GRACE_S, Pending
from aios_broker.contract.llm import LlmChat, ToolCall
from aios_broker.contract.reply import (
    ChatResult,
    Chunk,
    ContextResult,
    EchoResult,
    EmbedResult,
    Reply,
)
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.views.words import plural, seconds
from aios_cli.call import (
    Fields,
    ask,
    checked,
    conclude,
    fields_of,
    given,
    json_option,
    option_of,
    text_or_stdin,
)
from aios_cli.session import EXIT_CODES, EXIT_CUT, Operator, with_kernel
from aios_cli.syscalls import find
from aios_cli.tables import say, show_json

DEFAULT_AGENT = "cli"
ATTACH_TIMEOUT_S = 86_400.0  # as long as a deadline may be
SHOWN_NUMBERS = 6  # of a vector

# What `aios submit` takes in another way: PROMPT, --stream, and one option per form.
TAKEN_OTHERWISE = frozenset({"messages", "stream", "format"})
CHAT_FIELDS = {
    name: field for name, field in fields_of(LlmChat).items() if name not in TAKEN_OTHERWISE
}
CHAT_OPTIONS = (
    *map(option_of, CHAT_FIELDS.values()),
    json_option(["--schema"], "The answer is JSON that this schema allows; {} is any object."),
    click.Option(["--regex"], metavar="PATTERN", help="The answer matches it."),
    click.Option(["--grammar"], metavar="LARK", help="The answer is a sentence of it."),
)


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
    chat: Fields  # fields of the body


@click.command(epilog=EXIT_CODES, params=list(CHAT_OPTIONS))
@click.argument("text", metavar="[PROMPT]", required=False)
@click.option("--tool", metavar="NAME", help="Call this tool instead of the model: echo.")
@click.option("--attach", metavar="ID", help="Wait for a syscall that was submitted before.")
@click.option("--agent", default=DEFAULT_AGENT, show_default=True, help="As which agent.")
@click.option("--program", default="main", show_default=True, help="In which of its programs.")
@click.option("--embed", is_flag=True, help="Turn the text into a vector; with --json shown whole.")
@click.option("--nice", type=int, metavar="N", help="-20 (first) to 19 (last); 0.")
@click.option("--deadline-s", type=float, metavar="S", help="Fails after this long (600).")
@click.option("--key", help="Idempotency key: the same key is the same syscall, run once.")
@click.option("--stream/--no-stream", default=True, help="Print the answer while it is made.")
@click.option("--detach", is_flag=True, help="Print the id and do not wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply as JSON; no streaming.")
def submit(**values: object) -> None:
    """Submit a syscall and print its answer.

    PROMPT is a message to the model; `-` reads it from standard input. Ctrl-C cancels the
    syscall, unless it was attached to.

    \b
    Examples:
      aios submit "What is the capital of Peru?"
      aios submit --max-tokens 400 --temperature 0.8 --seed 7 "Tell a story."
      aios submit --schema '{"type": "integer"}' "How many legs has a spider?"
      aios submit --n 3 --temperature 1 "Name a colour."
      aios submit --tool echo hello
      id=$(aios submit --detach "Tell a story."); aios submit --attach $id
    """  # noqa: D301 - \b keeps click from wrapping
    options = msgspec.convert({**values, "chat": take_chat_fields(values)}, Options)
    syscall = None if options.attach else syscall_of(options)

    async def work(operator: Operator) -> Reply | None:
        if syscall is None:
            return await _attach(operator, options)
        named = await operator.identified(syscall, options.key)
        if options.detach:
            await _detach(operator, named, options)
            return None
        limit_s = syscall.deadline_s + REPLY_GRACE_S
        return await ask(operator, named, lambda pending: _hear(pending, limit_s, options))

    reply = with_kernel(work)
    if reply is not None:
        is_cut = isinstance(reply.result, ChatResult) and _is_cut(reply.result)
        if is_cut and not options.as_json:
            say("cut: the answer ran out of max_tokens before its end", err=True)
        if is_cut and "format" in options.chat:
            show_json(reply) if options.as_json else _show_timings(reply)
            raise SystemExit(EXIT_CUT)
        conclude(reply, _show_timings, as_json=options.as_json)


def _is_cut(result: ChatResult) -> bool:
    return any(each.finish_reason == "length" for each in result.choices or (result,))


def take_chat_fields(values: Fields) -> Fields:
    """Return the fields of the body among what a command was given."""
    forms = {
        "json": ("json_schema", values["schema"]),
        "regex": ("pattern", values["regex"]),
        "grammar": ("grammar", values["grammar"]),
    }
    wanted = [
        {"type": kind, name: value} for kind, (name, value) in forms.items() if value is not None
    ]
    if len(wanted) > 1:
        raise click.UsageError("one of --schema, --regex and --grammar, not several")
    if wanted == [{"type": "json", "json_schema": {}}]:
        wanted = [{"type": "json"}]
    fields = {name: values[name] for name in CHAT_FIELDS}
    return given({**fields, "format": wanted[0] if wanted else None})


def syscall_of(options: Options) -> Syscall:
    """Build and check the syscall."""
    if options.text is None:
        raise click.UsageError("a PROMPT is missing (or --attach ID)")
    return checked(
        {
            "id": new_id(),
            "agent": options.agent,
            "program": options.program,
            "nice": options.nice,
            "deadline_s": options.deadline_s,
            "body": _body(options, text_or_stdin(options.text)),
        }
    )


def _body(options: Options, text: str) -> Fields:
    if options.tool is not None:
        return {"type": f"tool.{options.tool}", "text": text}
    if options.embed:
        return {"type": "llm.embed", "texts": [text], "core": options.chat.get("core")}
    # Printed as it comes where the answer is certain, and for a person.
    several = {"n", "beam_width", "tools"} & options.chat.keys()
    streams = options.stream and not (options.as_json or options.detach or several)
    return {
        "type": "llm.chat",
        "messages": [{"role": "user", "content": text}],
        "stream": streams,
        **options.chat,
    }


async def _detach(operator: Operator, syscall: Syscall, options: Options) -> None:
    async with operator.client() as client:
        pending = client.submit(syscall)
        await pending.taken()
        client.let_go(pending)
    if options.as_json:
        show_json({"id": syscall.id})
    else:
        say(syscall.id)


async def _attach(operator: Operator, options: Options) -> Reply:
    assert options.attach is not None
    found = await find(operator, options.attach)
    async with operator.client() as client:
        pending = client.attach(found.job_id, None)
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
        say(line)
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
        if chunk.part == "reasoning":
            return  # it is in the reply
        say(chunk.text, nl=False)
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


def _show_timings(reply: Reply) -> None:
    """Say on a terminal what the answer took; the answer itself is printed by now."""
    result, timings = reply.unwrap(), reply.timings
    if isinstance(result, ChatResult) and sys.stderr.isatty():
        say(
            f"{plural(result.usage.output_tokens, 'token')}, waited {seconds(timings.queued_s)}, "
            f"ran {seconds(timings.ran_s)} in {plural(timings.slices, 'slice')}",
            err=True,
        )
