"""How the answers of memory, storage and access look on a terminal."""

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from aios_broker.contract import access, memory, storage, tools
from aios_broker.contract.exec import ExecOutcome, ExecSession, ExecSessions
from aios_broker.contract.reply import Result
from aios_broker.contract.workspace import ChangedFile, WorkspaceChanges
from aios_broker.views.words import moment
from aios_cli.tables import Column, Listing, first_words, say, show_json, write_content

SHOWN_CHARACTERS = 80


def show_result(result: Result) -> None:
    """Print an answer for a person."""
    show = _SHOWN.get(type(result), show_json)
    show(result)


def _beginning(text: str) -> str:
    return first_words(text, SHOWN_CHARACTERS)


def _kept_of(card: tools.ToolCard) -> str:
    words = {
        "wrong": bool(card.problem),
        "destructive": card.destructive,
        "idempotent": card.idempotent,
    }
    return ",".join(word for word, holds in words.items() if holds)


NOTES = Listing[memory.Note](
    (Column("Id"), lambda note: note.id),
    (Column("Owner"), lambda note: note.owner),
    (Column("Version", "right"), lambda note: note.version),
    (Column("Score", "right"), lambda note: "" if note.score is None else f"{note.score:.3f}"),
    (Column("Tags", shrinks=True), lambda note: ",".join(note.tags)),
    (Column("Content", shrinks=True), lambda note: _beginning(note.content)),
)
NOTE_VERSIONS = Listing[memory.NoteVersion](
    (Column("Version", "right"), lambda one: one.version),
    (Column("At"), lambda one: moment(one.at)),
    (Column("By"), lambda one: one.by),
    (Column("Operation"), lambda one: one.operation),
    (Column("Content", shrinks=True), lambda one: _beginning(one.note.content)),
)
ENTRIES = Listing[storage.Entry](
    (Column("Kind"), lambda entry: entry.kind),
    (Column("Version", "right"), lambda entry: entry.version or ""),
    (Column("Bytes", "right"), lambda entry: entry.size_bytes if entry.kind == "file" else ""),
    (Column("Changed"), lambda entry: moment(entry.updated_at or None)),
    (
        Column("Path", shrinks=True),
        lambda entry: f"{entry.path.rstrip('/')}/" if entry.kind == "directory" else entry.path,
    ),
    (Column("Locked by"), lambda entry: entry.locked_by),
)
HITS = Listing[storage.Found](
    (Column("Score", "right"), lambda hit: f"{hit.score:.3f}"),
    (Column("Owner"), lambda hit: hit.owner),
    (Column("Path"), lambda hit: hit.path),
    (Column("Text", shrinks=True), lambda hit: _beginning(hit.text)),
)
FILE_VERSIONS = Listing[storage.FileVersion](
    (Column("Version", "right"), lambda one: one.version),
    (Column("At"), lambda one: moment(one.at)),
    (Column("By"), lambda one: one.by),
    (Column("Operation"), lambda one: one.operation),
    (Column("Bytes", "right"), lambda one: one.size_bytes),
)
TOOLS = Listing[tools.ToolCard](
    (Column("Name"), lambda card: card.name),
    (Column("Version"), lambda card: card.version),
    (Column("Is"), _kept_of),
    (
        Column("Description", shrinks=True),
        lambda card: _beginning(card.problem or card.description),
    ),
)
SESSIONS = Listing[ExecSession](
    (Column("Id"), lambda one: one.id),
    (Column("Name", shrinks=True), lambda one: one.name),
    (Column("Runs in it"), lambda one: one.interpreter),
    (Column("State"), lambda one: one.state),
    (Column("Runs", "right"), lambda one: one.runs),
    (Column("Used"), lambda one: moment(one.used_at or None)),
    (Column("Why", shrinks=True), lambda one: one.reason),
)
CHANGES = Listing[ChangedFile](
    (Column("Path", shrinks=True), lambda one: one.path),
    (Column("Is"), lambda one: one.state),
    (Column("Now"), lambda one: one.outcome),
    (Column("Version", "right"), lambda one: one.version or ""),
    (Column("Bytes", "right"), lambda one: one.size_bytes),
    (Column("Why", shrinks=True), lambda one: one.why),
)
MEMBERS = Listing[tuple[str, str, str]](
    (Column("Group"), lambda one: one[0]),
    (Column("Agent"), lambda one: one[1]),
    (Column("Role"), lambda one: one[2]),
)
GRANTS = Listing[access.Grant](
    (Column("Object", shrinks=True), lambda one: f"{one.object.kind} {one.object.name}".strip()),
    (Column("Owner"), lambda one: one.object.owner or ""),
    (Column("To"), lambda one: one.to),
    (Column("Verbs"), lambda one: ",".join(one.verbs)),
    (Column("By"), lambda one: one.granted_by),
    (Column("Until"), lambda one: moment(one.expires_at)),
)


def _note(note: memory.Note) -> None:
    say(f"{note.id}  version {note.version}  of {note.owner}  {moment(note.updated_at)}")
    for name in ("keywords", "tags", "links", "category", "context"):
        if value := getattr(note, name):
            say(f"{name}: {value if isinstance(value, str) else ', '.join(value)}")
    say(note.content)


def _evolved(evolved: memory.Evolved) -> None:
    _note(evolved.note)
    for note_id in evolved.changed:
        say(f"changed: {note_id}")


def _notes(found: memory.Notes) -> None:
    NOTES.show(found.notes)
    if found.more:
        say(f"there are more: --after {found.notes[-1].id}", err=True)


def _entries(found: storage.Entries) -> None:
    ENTRIES.show(found.entries)
    if found.more:
        say(f"there are more: --after {found.entries[-1].path}", err=True)


def _groups(found: access.Groups) -> None:
    members = [(group.name, group.members or {"": "member"}) for group in found.groups]
    MEMBERS.show([(name, agent, role) for name, of in members for agent, role in of.items()])


def _fields(result: Any) -> None:  # noqa: ANN401  any struct of the contract
    for name, value in msgspec.to_builtins(result).items():
        if name != "type":
            say(f"{name:<16} {value}")


def _content(content: storage.Content) -> None:
    if content.encoding == "utf-8":
        write_content(content.content)
    else:
        sys.stdout.buffer.write(content.data)


def _plan(plan: storage.Plan) -> None:
    for number, step in enumerate(plan.steps, start=1):
        arguments = msgspec.json.encode(step.arguments).decode()
        say(f"{number}. {step.kind} {arguments}{f': {step.outcome}' if step.outcome else ''}")
    say("done" if plan.done else "not run")


def _tool_result(result: tools.ToolResult) -> None:
    """Print a tool's value; what it printed, and what it left, goes to standard error."""
    if result.output:
        say(result.output.rstrip("\n"), err=True)
    for made in result.files:
        say(f"made {made.path} ({made.bytes} bytes)", err=True)
    if isinstance(result.value, str):
        say(result.value)
    else:
        show_json(result.value)


def _session(session: ExecSession) -> None:
    """Print a session's id, to go on with; what is to be known of it goes to standard error."""
    say(session.id)
    for words in (session.reason, *session.warnings):
        if words:
            say(words, err=True)


def _run(outcome: ExecOutcome) -> None:
    """Print what a run printed and how its last expression shows itself, each where it belongs."""
    for text, is_error in ((outcome.stdout, False), (outcome.stderr, True)):
        if text:
            say(text.rstrip("\n"), err=is_error)
    if outcome.value:
        say(outcome.value)
    for made in outcome.files:
        say(f"made {made.path} ({made.bytes} bytes)", err=True)
    if outcome.output_cut:
        say("cut: it printed more than its session may", err=True)
    if outcome.error is not None:
        error = outcome.error
        say(error.traceback.rstrip("\n") or f"{error.name}: {error.message}", err=True)


def _changes(found: WorkspaceChanges) -> None:
    """Print what differs, and the texts; what is told of it no more closely, beside it."""
    CHANGES.show(found.changes)
    for one in found.changes:
        if one.diff:
            say(one.diff.rstrip("\n"))
    if found.ignored:
        say(f"ignored: {found.ignored} more", err=True)
    if found.diff_cut:
        say("cut: there are more texts; name paths", err=True)


_SHOWN: dict[type, Callable[[Any], None]] = {
    memory.Note: _note,
    memory.Evolved: _evolved,
    memory.Notes: _notes,
    memory.NoteHistory: lambda history: NOTE_VERSIONS.show(history.versions),
    memory.BlockStat: _fields,
    memory.Recall: lambda recall: say(recall.text),
    tools.ToolCards: lambda found: TOOLS.show(found.tools),
    tools.ToolResult: _tool_result,
    ExecSession: _session,
    ExecSessions: lambda found: SESSIONS.show(found.sessions),
    ExecOutcome: _run,
    WorkspaceChanges: _changes,
    storage.Content: _content,
    storage.Entry: lambda entry: ENTRIES.show([entry]),
    storage.Entries: _entries,
    storage.FoundFiles: lambda found: HITS.show(found.hits),
    storage.FileVersions: lambda found: FILE_VERSIONS.show(found.versions),
    storage.Diff: lambda diff: say(diff.diff, nl=False),
    storage.Plan: _plan,
    storage.ShareLink: _fields,
    access.Groups: _groups,
    access.Grants: lambda found: GRANTS.show(found.grants),
    access.Whoami: _fields,
    access.Verdict: _fields,
    access.TokenIssued: _fields,
    access.Acknowledged: lambda done: say("done" if done.changed else "nothing was to be changed"),
}
