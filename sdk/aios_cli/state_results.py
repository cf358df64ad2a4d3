"""How the answers of memory, storage and access look on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from aios_broker.contract import access, files, memory
from aios_broker.contract.reply import Result
from aios_cli.human import first_words, moment, short_id
from aios_cli.tables import Column, show_json, show_table

SHOWN_CHARACTERS = 80


def show_result(result: Result) -> None:
    """Print an answer for a person."""
    show = _SHOWN.get(type(result), show_json)
    show(result)


def _note(note: memory.Note) -> None:
    click.echo(f"{note.id}  version {note.version}  of {note.owner}  {moment(note.updated_at)}")
    for name in ("keywords", "tags", "links"):
        if words := getattr(note, name):
            click.echo(f"{name}: {', '.join(words)}")
    for name in ("category", "context"):
        if text := getattr(note, name):
            click.echo(f"{name}: {text}")
    click.echo(note.content)


def _evolved(evolved: memory.Evolved) -> None:
    _note(evolved.note)
    for note_id in evolved.changed:
        click.echo(f"changed: {note_id}")


def _notes(found: memory.Notes) -> None:
    columns = (
        Column("Id"),
        Column("Owner"),
        Column("Version", "right"),
        Column("Score", "right"),
        Column("Tags", shrinks=True),
        Column("Content", shrinks=True),
    )
    rows = [
        (
            note.id,
            note.owner,
            str(note.version),
            "" if note.score is None else f"{note.score:.3f}",
            ",".join(note.tags),
            first_words(note.content, SHOWN_CHARACTERS),
        )
        for note in found.notes
    ]
    show_table(columns, rows)
    if found.more:
        click.echo(f"there are more: --after {found.notes[-1].id}", err=True)


def _history(history: memory.NoteHistory) -> None:
    show_table(
        (
            Column("Version", "right"),
            Column("At"),
            Column("By"),
            Column("Operation"),
            Column("Content", shrinks=True),
        ),
        [
            (
                str(one.version),
                moment(one.at),
                one.by,
                one.operation,
                first_words(one.note.content, SHOWN_CHARACTERS),
            )
            for one in history.versions
        ],
    )


def _fields(result: Any) -> None:  # noqa: ANN401  any struct of the contract
    for name, value in msgspec.to_builtins(result).items():
        if name != "type":
            click.echo(f"{name:<16} {value}")


def _recall(recall: memory.Recall) -> None:
    click.echo(recall.text)


def _content(content: files.Content) -> None:
    if content.encoding == "utf-8":
        click.echo(content.content, nl=False)
    else:
        sys.stdout.buffer.write(content.data)


def _entry(entry: files.Entry) -> None:
    _entries(files.Entries((entry,)))


def _entries(found: files.Entries) -> None:
    columns = (
        Column("Kind"),
        Column("Version", "right"),
        Column("Bytes", "right"),
        Column("Changed"),
        Column("Path", shrinks=True),
        Column("Locked by"),
    )
    show_table(
        columns,
        [
            (
                entry.kind,
                str(entry.version or ""),
                str(entry.size_bytes) if entry.kind == "file" else "",
                moment(entry.updated_at or None),
                entry.path + ("/" if entry.kind == "directory" and entry.path != "/" else ""),
                entry.locked_by,
            )
            for entry in found.entries
        ],
    )
    if found.more:
        click.echo(f"there are more: --after {found.entries[-1].path}", err=True)


def _hits(found: files.FoundFiles) -> None:
    show_table(
        (Column("Score", "right"), Column("Owner"), Column("Path"), Column("Text", shrinks=True)),
        [
            (f"{hit.score:.3f}", hit.owner, hit.path, first_words(hit.text, SHOWN_CHARACTERS))
            for hit in found.hits
        ],
    )


def _file_versions(found: files.FileVersions) -> None:
    show_table(
        (
            Column("Version", "right"),
            Column("At"),
            Column("By"),
            Column("Operation"),
            Column("Bytes", "right"),
        ),
        [
            (str(one.version), moment(one.at), one.by, one.operation, str(one.size_bytes))
            for one in found.versions
        ],
    )


def _diff(diff: files.Diff) -> None:
    click.echo(diff.diff, nl=False)


def _plan(plan: files.Plan) -> None:
    for number, step in enumerate(plan.steps, start=1):
        arguments = msgspec.json.encode(step.arguments).decode()
        click.echo(
            f"{number}. {step.kind} {arguments}{f': {step.outcome}' if step.outcome else ''}"
        )
    click.echo("done" if plan.done else "not run")


def _groups(found: access.Groups) -> None:
    show_table(
        (Column("Group"), Column("Agent"), Column("Role")),
        [
            (group.name, agent, role)
            for group in found.groups
            for agent, role in (group.members or {"": "member"}).items()
        ],
    )


def _grants(found: access.Grants) -> None:
    show_table(
        (
            Column("Object", shrinks=True),
            Column("Owner"),
            Column("To"),
            Column("Verbs"),
            Column("By"),
            Column("Until"),
        ),
        [
            (
                f"{one.object.kind} {one.object.name}".strip(),
                one.object.owner or "",
                one.to,
                ",".join(one.verbs),
                one.granted_by,
                moment(one.expires_at),
            )
            for one in found.grants
        ],
    )


def show_approvals(approvals: Sequence[access.Approval]) -> None:
    """Print approvals, one line each."""
    show_table(
        (
            Column("Approval"),
            Column("State"),
            Column("Agent"),
            Column("Syscall"),
            Column("Until"),
            Column("What", shrinks=True),
        ),
        [
            (
                one.id,
                one.state,
                f"{one.tenant}/{one.agent}",
                short_id(one.syscall_id),
                moment(one.expires_at),
                one.what,
            )
            for one in approvals
        ],
    )


def show_audit(entries: Sequence[access.AuditEntry]) -> None:
    """Print lines of the audit log, newest first."""
    show_table(
        (
            Column("No", "right"),
            Column("At"),
            Column("Actor"),
            Column("Action"),
            Column("Object", shrinks=True),
            Column("Outcome", shrinks=True),
        ),
        [
            (
                str(one.seq),
                moment(one.at),
                f"{one.tenant}/{one.actor}",
                one.action,
                one.object,
                one.outcome,
            )
            for one in entries
        ],
    )


def _acknowledged(done: access.Acknowledged) -> None:
    click.echo("done" if done.changed else "nothing was to be changed")


_SHOWN: dict[type, Callable[[Any], None]] = {
    memory.Note: _note,
    memory.Evolved: _evolved,
    memory.Notes: _notes,
    memory.NoteHistory: _history,
    memory.BlockStat: _fields,
    memory.Recall: _recall,
    files.Content: _content,
    files.Entry: _entry,
    files.Entries: _entries,
    files.FoundFiles: _hits,
    files.FileVersions: _file_versions,
    files.Diff: _diff,
    files.Plan: _plan,
    files.ShareLink: _fields,
    access.Groups: _groups,
    access.Grants: _grants,
    access.Whoami: _fields,
    access.Verdict: _fields,
    access.TokenIssued: _fields,
    access.Acknowledged: _acknowledged,
}
