"""`aios memory export | import`: notes into a file and out of it, as JSON Lines."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import click
import msgspec

from aios_broker.client.notes_file import NotesFile, export_notes, import_notes
from aios_broker.client.pending import REPLY_GRACE_S
from aios_broker.contract import memory
from aios_broker.contract.syscall import Body, new_id
from aios_broker.views.words import plural
from aios_cli.call import Fields, checked, fields_of, given, option_of
from aios_cli.session import Operator, with_kernel
from aios_cli.state_words import WORDS
from aios_cli.tables import say, show_json

_FILE = click.Argument(["file"], type=click.Path(dir_okay=False, allow_dash=True))
_WHICH = ("owner", *memory.NoteFilter.__struct_fields__)
_EXPORT_HELP = """Write notes into FILE, a note a line, as JSON; `-`: to standard output.

\b
Each has its text, labels, metadata, times and place in a conversation; older
versions and grants stay behind. A FILE that is there is replaced at the end.
Examples:
  aios memory export notes.jsonl --agent ada
  aios memory export - --agent ada --tag launch | gzip > launch.jsonl.gz
"""
_IMPORT_HELP = """Add the notes of FILE, as `export` writes it; `-`: from standard input.

\b
What is there already is left as it is, so it can be run again. New notes have
new ids; links among them, times and conversations are kept.
Examples:
  aios memory import notes.jsonl --agent bob
"""


def notes_file_commands(asker: Callable[[], list[click.Parameter]]) -> list[click.Command]:
    """Return the two commands; `asker` gives the options that say who asks."""
    fields = fields_of(memory.MemoryDump)
    which = [option_of(fields[name], WORDS[name]) for name in _WHICH]
    return [
        click.Command(
            "export", callback=_export, params=[_FILE, *which, *asker()], help=_EXPORT_HELP
        ),
        click.Command("import", callback=_import, params=[_FILE, *asker()], help=_IMPORT_HELP),
    ]


def _export(*, file: str, as_json: bool, **values: Any) -> None:  # noqa: ANN401  options
    target: NotesFile = sys.stdout.buffer if file == "-" else file
    only = given({name: values.pop(name) for name in _WHICH})

    async def work(operator: Operator) -> int:
        async with _sending(operator, values) as send:
            return await export_notes(send, target, only)  # type: ignore[arg-type]  # checked there

    count = with_kernel(work)
    if file == "-":
        sys.stdout.buffer.flush()
    elif as_json:
        show_json({"notes": count})
    else:
        say(f"{file}: {plural(count, 'note')}")


def _import(*, file: str, as_json: bool, **values: Any) -> None:  # noqa: ANN401  options
    source: NotesFile = sys.stdin.buffer if file == "-" else file

    async def work(operator: Operator) -> memory.Restored:
        async with _sending(operator, values) as send:
            return await import_notes(send, source)

    done = with_kernel(work)
    if as_json:
        show_json(msgspec.structs.asdict(done))
        return
    expired = f", {done.expired} expired and left out" if done.expired else ""
    say(f"{plural(done.added, 'note')} added, {done.existing} there already{expired}")


@asynccontextmanager
async def _sending(
    operator: Operator, asker: Fields
) -> AsyncIterator[Callable[[Body, int], Awaitable[Any]]]:
    """Yield what sends a body as the agent, and returns its result."""
    who = {name.removeprefix("as_"): value for name, value in asker.items()}
    async with operator.client() as client:

        async def send(body: Body, _: int) -> Any:  # noqa: ANN401  the result of its kind
            fields = {"id": new_id(), **who, "body": msgspec.to_builtins(body)}
            syscall = await operator.identified(checked(fields))
            pending = client.submit(syscall)
            reply = await pending.reply_within(syscall.deadline_s + REPLY_GRACE_S)
            return reply.unwrap()

        yield send
