"""`aios memory | files | groups | grants`: syscalls of the state modules, as an agent.

Each operation is one entry: the contract's struct has the fields, this table the words.
"""

import asyncio
import base64
import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec

from aios_broker.client.pending import REPLY_GRACE_S, Pending
from aios_broker.contract import access, memory, storage
from aios_broker.contract.errors import Unavailable
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import new_id
from aios_broker.views.words import short_id
from aios_cli.call import (
    Fields,
    argument_of,
    ask,
    checked,
    conclude,
    fields_of,
    given,
    option_of,
    text_or_stdin,
)
from aios_cli.notes_file import notes_file_commands
from aios_cli.results import show_result
from aios_cli.session import EXIT_CODES, Operator, with_kernel
from aios_cli.state_words import FLAGS, WORDS
from aios_cli.tables import say

LOOK_S = 1.0  # between looks at whether it waits for a person
SHARED_VERBS = ("read", "search")


@dataclass(frozen=True, slots=True)
class Operation:
    """One command: the struct that it sends, its words, and which fields need no flag."""

    body: type[msgspec.Struct]
    help: str
    arguments: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    # Parameters that are no fields, which fields they stand for, and how these are made of them.
    others: tuple[click.Parameter, ...] = ()
    stands_for: tuple[str, ...] = ()
    make: Callable[[Fields], Fields] = dict

    def params(self) -> list[click.Parameter]:
        """Return the parameters of the body: arguments in order, then the options."""
        fields = fields_of(self.body)
        places = [argument_of(fields[name]) for name in self.arguments]
        options = [
            option_of(each, self.words.get(name) or WORDS[name], FLAGS.get(name, ()))
            for name, each in fields.items()
            if name not in (*self.arguments, *self.stands_for)
        ]
        return [*places, *self.others, *options]

    def fields(self, values: Fields) -> Fields:
        """Return the body to send, from what the command line says."""
        tag = self.body.__struct_config__.tag
        return {"type": tag, **self.make(given(values))}


def _with_text(values: Fields) -> Fields:
    return (
        {**values, "content": text_or_stdin(str(values["content"]))}
        if values.get("content")
        else values
    )


def _with_content(values: Fields) -> Fields:
    """Take a file's content from the command line, a file of this machine or standard input."""
    text, source = values.pop("content", None), values.pop("source", None)
    if (text is None) == (source is None):
        raise click.UsageError("give CONTENT or --from FILE")
    if source is None:
        return {**values, "content": text}
    data = sys.stdin.buffer.read() if source == "-" else Path(str(source)).read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        if b"\0" not in data:  # no text may have one
            return {**values, "content": data.decode()}
    return {**values, "content": base64.b64encode(data).decode(), "encoding": "base64"}


def _with_object(values: Fields) -> Fields:
    names = ("kind", "name", "owner")
    of_object = given({name: values.pop(name, None) for name in names})
    if of_object["kind"] == "block":
        of_object.pop("name", None)
    return {**values, "object": of_object}


def _with_role(values: Fields) -> Fields:
    return {**values, "role": "admin"} if values.pop("admin", False) else values


_CONTENT = (
    click.Argument(["content"], required=False),
    click.Option(
        ["--from", "source"],
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        help="Take the content from this file of this machine; `-`: standard input.",
    ),
)
_OWNER = click.Option(["--owner"], help="Another agent, whose it is.")
_KIND = click.Argument(["kind"], type=click.Choice(["block", "note", "file", "directory"]))
_OBJECT = (_KIND, click.Argument(["name"], default=""), _OWNER)
_CHECKED = (_KIND, click.Argument(["name"]), click.Argument(["verb"]), _OWNER)

MEMORY = {
    "add": Operation(
        memory.MemoryAdd,
        "Add a note; CONTENT `-` reads it from standard input.",
        ("content",),
        {"ttl_s": "It expires after so long"},
        make=_with_text,
    ),
    "get": Operation(memory.MemoryGet, "Show a note.", ("note",)),
    "update": Operation(
        memory.MemoryUpdate,
        "Change a note; what is left out stays, and the old version is kept.",
        ("note", "content"),
        make=_with_text,
    ),
    "remove": Operation(
        memory.MemoryRemove, "Delete a note and its versions, when a person allowed it.", ("note",)
    ),
    "list": Operation(
        memory.MemoryList, "List notes, oldest first.", words={"category": "Only of this category"}
    ),
    "search": Operation(
        memory.MemorySearch,
        "Find notes, best first.",
        ("query",),
        {"category": "Only of this category"},
    ),
    "context": Operation(
        memory.MemoryContext,
        "Print what is worth recalling, as one text for a prompt.",
        ("query",),
        {
            "shared": "Also of what others share",
            "core": "Count tokens as this core does; else they are estimated",
        },
    ),
    "history": Operation(memory.MemoryHistory, "List a note's versions, newest first.", ("note",)),
    "rollback": Operation(
        memory.MemoryRollback,
        "Make an older VERSION of a note the newest one.",
        ("note", "version"),
    ),
    "undo": Operation(
        memory.MemoryUndo,
        "Take back what an evolution, by its SYSCALL's id, did to other notes.",
        ("syscall_id",),
    ),
    "clear": Operation(
        memory.MemoryClear,
        "Delete all notes of the agent, or those that the options mean, when a person allowed it.",
    ),
    "share": Operation(
        memory.MemoryShare,
        "Share a NOTE, or without one all notes, with a group or an agent.",
        ("note",),
    ),
    "unshare": Operation(
        memory.MemoryUnshare, "Take that back, when a person allowed it.", ("note",)
    ),
    "alloc": Operation(
        memory.MemoryAlloc,
        "Set the size of the agent's block, and how notes are chosen to leave it.",
        words={"k": "Of LRU-K: how many references count"},
    ),
    "stat": Operation(memory.MemoryStat, "Show the block's size and counters."),
}
FILES = {
    "create": Operation(
        storage.StorageCreate,
        "Make a new file.",
        ("path",),
        others=_CONTENT,
        stands_for=("content", "encoding"),
        make=_with_content,
    ),
    "read": Operation(storage.StorageRead, "Print a file, byte for byte.", ("path",)),
    "write": Operation(
        storage.StorageWrite,
        "Replace a file's content, or make the file; a person may be asked first.",
        ("path",),
        {"if_version": "Only if it is of this version; 0: only a new one"},
        _CONTENT,
        ("content", "encoding"),
        _with_content,
    ),
    "append": Operation(
        storage.StorageAppend,
        "Add to the end of a file.",
        ("path",),
        {"if_version": "Only if it is of this version; 0: only a new one"},
        others=_CONTENT,
        stands_for=("content", "encoding"),
        make=_with_content,
    ),
    "apply": Operation(
        storage.StorageApply,
        "Write and delete several files, all or none; a person may be asked first.",
        words={"changes": "Of each file: path, and content unless it goes"},
    ),
    "ls": Operation(storage.StorageList, "List a directory.", ("path",)),
    "stat": Operation(
        storage.StorageStat, "Show what is known of a file or a directory.", ("path",)
    ),
    "mv": Operation(storage.StorageMove, "Move or rename.", ("path", "to")),
    "cp": Operation(
        storage.StorageCopy,
        "Copy, without history; with --owner from another agent's namespace into one's own.",
        ("path", "to"),
    ),
    "rm": Operation(storage.StorageDelete, "Delete, when a person allowed it.", ("path",)),
    "mkdir": Operation(storage.StorageMkdir, "Make a directory and those above it.", ("path",)),
    "search": Operation(storage.StorageSearch, "Find files, best first.", ("query",)),
    "versions": Operation(
        storage.StorageVersions, "List a file's versions, newest first.", ("path",)
    ),
    "diff": Operation(
        storage.StorageDiff,
        "Show what changed from version A to version B (the newest).",
        ("path", "a", "b"),
    ),
    "rollback": Operation(
        storage.StorageRollback,
        "Make an older version the newest one.",
        ("path",),
        {"version": "By its number"},
    ),
    "share": Operation(
        storage.StorageShare,
        "Share a file or a directory.",
        ("path",),
        {"ttl_s": "For so long; a link: a day"},
    ),
    "unshare": Operation(
        storage.StorageUnshare, "Take that back, links too, when a person allowed it.", ("path",)
    ),
    "open": Operation(storage.StorageOpen, "Print the file that a link reads.", ("link",)),
    "lock": Operation(storage.StorageLock, "Keep others from changing a file.", ("path",)),
    "unlock": Operation(storage.StorageUnlock, "Let others change it again.", ("path",)),
    "mount": Operation(
        storage.StorageMount,
        "Show the directory SOURCE of the worker's host at PATH.",
        ("path", "source"),
    ),
    "unmount": Operation(
        storage.StorageUnmount, "Take a mounted directory out of the namespace.", ("path",)
    ),
    "operate": Operation(
        storage.StorageOperate,
        "Do what a sentence says: a model plans, the kernel checks and runs the plan.",
        ("instruction",),
        {"core": "Whose model plans"},
    ),
}
GROUPS = {
    "list": Operation(access.AccessGroups, "List the groups of the tenant with their members."),
    "create": Operation(
        access.AccessGroupCreate,
        "Make a group; its first administrator is who makes it.",
        ("group",),
    ),
    "delete": Operation(
        access.AccessGroupDelete,
        "Delete a group and all grants to it, when a person allowed it.",
        ("group",),
    ),
    "add": Operation(
        access.AccessGroupAdd,
        "Put an agent into a group, when a person allowed it.",
        ("group", "agent"),
        others=(click.Option(["--admin"], is_flag=True, help="As an administrator of the group."),),
        stands_for=("role",),
        make=_with_role,
    ),
    "remove": Operation(
        access.AccessGroupRemove,
        "Take an agent out of a group, when a person allowed it.",
        ("group", "agent"),
    ),
}
GRANTS = {
    "list": Operation(access.AccessGrants, "List the grants on the agent's objects."),
    "give": Operation(
        access.AccessGrant,
        "Let an agent or a group do something with an object.",
        others=_OBJECT,
        stands_for=("object",),
        make=lambda values: _with_object({"verbs": SHARED_VERBS, **values}),
    ),
    "take": Operation(
        access.AccessRevoke,
        "Take grants back, when a person allowed it.",
        others=_OBJECT,
        stands_for=("object",),
        make=_with_object,
    ),
    "check": Operation(
        access.AccessCheck,
        "Tell whether the agent may do something, and why.",
        others=_CHECKED,
        stands_for=("object", "verb"),
        make=_with_object,
    ),
}


def who_asks() -> list[click.Parameter]:
    """Return the options that say as whom something is asked."""
    return [
        click.Option(
            ["--agent", "as_agent"], default="cli", show_default=True, help="As which agent."
        ),
        click.Option(
            ["--program", "as_program"],
            default="main",
            show_default=True,
            help="In which of its programs.",
        ),
        click.Option(
            ["--tenant", "as_tenant"],
            default="default",
            show_default=True,
            help="Whose agent it is.",
        ),
    ]


def _asker() -> list[click.Parameter]:
    """Return the options of every operation: who asks, and how the answer is shown."""
    return [
        *who_asks(),
        click.Option(
            ["--deadline-s", "as_deadline_s"],
            type=float,
            default=600.0,
            show_default=True,
            help="It fails after this long, a person's decision included.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the answer as JSON."),
    ]


def commands_of(table: Mapping[str, Operation]) -> list[click.Command]:
    """Return a command for each operation: it sends the body as an agent and shows the answer."""
    return [
        click.Command(
            each,
            callback=_callback(operation),
            params=[*operation.params(), *_asker()],
            help=operation.help,
        )
        for each, operation in table.items()
    ]


def _group(name: str, table: Mapping[str, Operation], help_text: str) -> click.Group:
    return click.Group(name, commands_of(table), help=help_text, epilog=EXIT_CODES)


def _callback(operation: Operation) -> Callable[..., None]:
    """Return what a command does: send its body as the agent, wait, show the answer."""

    def run(*, as_json: bool, **values: object) -> None:
        asker = {
            name: values.pop(f"as_{name}") for name in ("agent", "program", "tenant", "deadline_s")
        }
        built = checked({"id": new_id(), **asker, "body": operation.fields(values)})

        async def work(operator: Operator) -> Reply:
            syscall = await operator.identified(built)

            async def hear(pending: Pending) -> Reply:
                telling = asyncio.create_task(_tell_when_parked(operator, syscall.id))
                try:
                    return await pending.reply_within(syscall.deadline_s + REPLY_GRACE_S)
                finally:
                    telling.cancel()

            return await ask(operator, syscall, hear)

        conclude(with_kernel(work), lambda reply: show_result(reply.unwrap()), as_json=as_json)

    return run


async def _tell_when_parked(operator: Operator, syscall_id: str) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        with contextlib.suppress(Unavailable):  # it comes back, or the reply says that it did not
            view = await operator.control.job(syscall_id)
            if view is not None and view.state == "parked":
                typed = short_id(syscall_id)
                say(
                    f"{typed} waits for a person: `aios approve {typed}` shows what it would do",
                    err=True,
                )
                return


memory_commands = _group(
    "memory",
    MEMORY,
    """Keep, find and share the notes of an agent.

    \b
    Examples:
      aios memory add "The launch is on 3 May" --tag launch --agent ada
      aios memory search "when do we start?" --agent ada
      aios memory share --group team --agent ada
      aios memory export notes.jsonl --agent ada
    """,
)
for each in notes_file_commands(_asker):
    memory_commands.add_command(each)
files = _group(
    "files",
    FILES,
    """Read, change, find and share the files of an agent.

    \b
    Examples:
      aios files write notes/plan.md "Buy milk" --agent ada
      aios files write report.pdf --from report.pdf --agent ada
      aios files search "shopping" --agent ada
      aios files rollback notes/plan.md --version 1 --agent ada
    """,
)
groups = _group(
    "groups",
    GROUPS,
    """Show and change privilege groups.

    \b
    Examples:
      aios groups create team --agent ada
      aios groups add team bob --agent ada
    """,
)
grants = _group(
    "grants",
    GRANTS,
    """Show and change grants on an agent's notes and files.

    KIND is block (all notes), note, file or directory; NAME a note's id or a path.

    \b
    Examples:
      aios grants give directory plans --to bob --verb read --agent ada
      aios grants list --held --agent bob
      aios grants check file plans/a.txt write --owner ada --agent bob
    """,
)
