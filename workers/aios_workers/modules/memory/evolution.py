"""Agentic memory: a model labels a new note, links it, and may rewrite its neighbours' labels.

The scheme is that of A-MEM (arXiv 2502.12110): analyse the note into keywords, context and tags;
find its neighbours; let the model say which are related and whose context and tags change by it.
The model calls are llm syscalls of their own, under a JSON schema. What a model says that makes no
sense (a neighbour that is not there, too many words) is dropped: a note is never lost by it.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import CoreError, NotFound, VersionConflict
from aios_broker.contract.llm import JsonFormat, LlmChat, Message
from aios_broker.contract.memory import Evolved, MemoryAdd, MemoryUndo, Note, Notes
from aios_broker.contract.reply import ChatResult, Result
from aios_workers.modules.memory.adding import (
    dedupe_locks,
    id_of_new_note,
    identical,
    insert_note,
)
from aios_workers.modules.memory.changing import ensure_storable, keep, rewrite_note
from aios_workers.modules.memory.note import (
    KEPT_VERSIONS,
    NoteBody,
    body_of,
    fetch_notes,
    note_in_version,
)
from aios_workers.modules.memory.reading import found
from aios_workers.modules.operation import Asked, Work, run_once
from aios_workers.search.corpora import NoteQuery

NEIGHBOURS = 5
MAX_WORDS = 16
MAX_WORD_CHARACTERS = 64
MAX_CONTEXT_CHARACTERS = 500
MAX_SHOWN_CHARACTERS = 1_000  # of one note in a prompt
MAX_TOKENS = 300

_WORDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string", "maxLength": 64},
    "maxItems": MAX_WORDS,
}
_LABELS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["keywords", "context", "tags"],
    "properties": {
        "keywords": _WORDS,
        "tags": _WORDS,
        "context": {"type": "string", "maxLength": MAX_CONTEXT_CHARACTERS},
    },
}
_INDEX: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": NEIGHBOURS - 1}
_RELATIONS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["links", "update"],
    "properties": {
        "links": {"type": "array", "items": _INDEX, "maxItems": NEIGHBOURS},
        "update": {
            "type": "array",
            "maxItems": NEIGHBOURS,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["index", "context", "tags"],
                "properties": {
                    "index": _INDEX,
                    "tags": _WORDS,
                    "context": {"type": "string", "maxLength": MAX_CONTEXT_CHARACTERS},
                },
            },
        },
    },
}
_ANALYSE = (
    "You label notes so that they are found again. Answer with JSON: keywords (what it is about, "
    "most important first), context (one sentence), tags (broad categories)."
)
_RELATE = (
    "You keep a memory of notes in order. Given a new note and numbered neighbours, answer with "
    "JSON: links (numbers of neighbours that belong to it), update (neighbours whose context or "
    "tags should change because of it, with the new ones)."
)
_EVOLVED = """
    SELECT note_id, version FROM note_version
     WHERE syscall_id = %s AND owner_id = %s AND operation = 'evolve'
"""


class Labels(Struct, frozen=True):
    """What a model says a note is about."""

    keywords: tuple[str, ...] = ()
    context: str = ""
    tags: tuple[str, ...] = ()


class NewLabels(Struct, frozen=True):
    """What a model would change of a neighbour."""

    index: int
    context: str = ""
    tags: tuple[str, ...] = ()


class Relations(Struct, frozen=True):
    """How a model relates a new note to its neighbours."""

    links: tuple[int, ...] = ()
    update: tuple[NewLabels, ...] = ()


Answer = TypeVar("Answer", Labels, Relations)


async def add_evolving(asked: Asked[MemoryAdd]) -> Result:
    """Add a note that a model labels and links; one transaction at the end writes it all."""
    new = body_of(asked.body)
    ensure_storable(new)
    await asked.services.blocks.of(asked.agent).token()  # opens it, which no step may
    if asked.body.dedupe and (known := await _known(asked)) is not None:
        return known  # before a model is asked
    labels = await _ask(asked, "analyse", _ANALYSE, _shown(new), _LABELS, Labels)
    labelled = _labelled(new, labels)
    near = (await found(asked, NoteQuery(_shown(labelled), NEIGHBOURS))).notes
    new_id = id_of_new_note(asked.syscall)
    neighbours = [note for note in near if note.id != new_id]
    relations = await _relate(asked, labelled, neighbours)

    async def write(work: Work[MemoryAdd]) -> Evolved:
        known = await _identical(work)
        return known or await _write(work, labelled, neighbours, relations)

    return await run_once(asked, write, *dedupe_locks(asked, new.content))


async def _known(asked: Asked[MemoryAdd]) -> Evolved | None:
    """Return the note that says the same, where there is one by now; it may be gone again later."""
    async with asked.transaction() as work:
        known = await _identical(work)
    await work.follow()
    return known


async def _identical(work: Work[MemoryAdd]) -> Evolved | None:
    body = work.body
    note = await identical(work, body.content, body.ttl_s) if body.dedupe else None
    return None if note is None else Evolved(note)


async def undo(work: Work[MemoryUndo]) -> Notes:
    """Give notes that an evolution changed the versions that they had before it.

    Raises:
        NotFound: it changed none that is there; or nobody knows it, or it is another agent's.
        VersionConflict: some were changed since; nothing is undone.
    """
    agent, cursor = work.agent, work.cursor
    rows = await work.rows(_EVOLVED, (work.body.syscall_id, agent.id))
    if not rows:
        raise NotFound(
            f"none of your notes was changed by an evolution in syscall {work.body.syscall_id}",
            field="body.syscall_id",
            remedy="give the id of the memory.add whose `changed` names notes",
        )
    before = {row.note_id: row.version for row in rows}
    notes = await fetch_notes(cursor, agent, sorted(before), "FOR UPDATE")
    changed = [each for each, note in notes.items() if note.version != before[each]]
    if changed:
        raise VersionConflict(
            f"changed since: {', '.join(changed)}",
            field="body.syscall_id",
            remedy="roll them back one by one (memory.rollback)",
        )
    undone = []
    for each, note in notes.items():
        old = await note_in_version(cursor, note, before[each] - 1)
        undone.append(await rewrite_note(work, agent, each, body_of(old), "undo"))
    await work.ask()
    token = await work.services.blocks.of(agent).invalidate(list(notes))
    for note in undone:
        keep(work, agent, note, token)
    return Notes(tuple(undone))


async def _relate(asked: Asked[MemoryAdd], new: NoteBody, neighbours: Sequence[Note]) -> Relations:
    if not neighbours:
        return Relations()
    listed = "\n\n".join(
        f"Neighbour {index}:\n{_shown(body_of(note))}" for index, note in enumerate(neighbours)
    )
    prompt = f"New note:\n{_shown(new)}\n\n{listed}"
    return await _ask(asked, "relate", _RELATE, prompt, _RELATIONS, Relations)


async def _ask(
    asked: Asked[MemoryAdd],
    step: str,
    system: str,
    prompt: str,
    schema: dict[str, Any],
    answer: type[Answer],
) -> Answer:
    chat = LlmChat(
        (Message("system", system), Message("user", prompt)),
        core=asked.body.core,
        max_tokens=MAX_TOKENS,
        format=JsonFormat(schema),
    )
    result = await asked.services.calls.call(asked.syscall, chat, step)
    if not isinstance(result, ChatResult):
        raise CoreError(f"the model did not answer the step {step!r} with a text")
    try:
        return msgspec.json.decode(result.text, type=answer)
    except msgspec.MsgspecError:  # cut off by max_tokens: as if it had said nothing
        return answer()


async def _write(
    work: Work[MemoryAdd], new: NoteBody, neighbours: Sequence[Note], relations: Relations
) -> Evolved:
    agent = work.agent
    # What was deleted or changed while the model thought is left as it is.
    locked = await fetch_notes(work.cursor, agent, [note.id for note in neighbours], "FOR UPDATE")
    now = [locked.get(note.id) for note in neighbours]
    current = [
        note if note is not None and note.version == neighbour.version else None
        for note, neighbour in zip(now, neighbours, strict=True)
    ]
    linked = [
        note
        for index in dict.fromkeys(relations.links)
        if (note := _at(current, index)) is not None
    ]
    links = (*new.links, *(note.id for note in linked if note.id not in new.links))
    final = msgspec.structs.replace(new, links=links)
    related = _changes(current, linked, relations, id_of_new_note(work.asked.syscall))
    # What a model says takes nothing away: a note that would lose its oldest version stays.
    changes = {each: body for each, body in related.items() if locked[each].version < KEPT_VERSIONS}
    token = await work.services.blocks.of(agent).invalidate(list(changes))
    note = await insert_note(work, final, work.body.ttl_s)
    keep(work, agent, note, token)
    for note_id, after in changes.items():
        written = await rewrite_note(work, agent, note_id, after, "evolve")
        keep(work, agent, written, token)
    return Evolved(note, tuple(changes))


def _changes(
    current: Sequence[Note | None], linked: Sequence[Note], relations: Relations, new_id: str
) -> dict[str, NoteBody]:
    """Return what becomes of neighbours: links back to the new note, new contexts and tags."""
    changes = {
        note.id: msgspec.structs.replace(body_of(note), links=(*note.links, new_id))
        for note in linked
    }
    for update in relations.update:
        note = _at(current, update.index)
        if note is not None:
            body = changes.get(note.id, body_of(note))
            changes[note.id] = msgspec.structs.replace(
                body,
                context=_line(update.context) or body.context,
                tags=_words(update.tags) or body.tags,
            )
    return changes


def _at(notes: Sequence[Note | None], index: int) -> Note | None:
    return notes[index] if 0 <= index < len(notes) else None


def _labelled(new: NoteBody, labels: Labels) -> NoteBody:
    """Return a note with the model's labels; what its writer gave stays."""
    return msgspec.structs.replace(
        new,
        keywords=new.keywords or _words(labels.keywords),
        context=new.context or _line(labels.context),
        tags=new.tags or _words(labels.tags),
    )


def _words(words: Sequence[str]) -> tuple[str, ...]:
    cleaned = (_line(word)[:MAX_WORD_CHARACTERS] for word in words)
    return tuple(dict.fromkeys(word for word in cleaned if word))[:MAX_WORDS]


def _line(text: str) -> str:
    return " ".join(text.replace("\x00", " ").split())[:MAX_CONTEXT_CHARACTERS]


def _shown(note: NoteBody) -> str:
    labels = [f"context: {note.context}"] if note.context else []
    labels += [f"tags: {', '.join(note.tags)}"] if note.tags else []
    return "\n".join([note.content[:MAX_SHOWN_CHARACTERS], *labels])
