"""What an agent may ask of the memory module: notes that it keeps, finds again, and may share.

A note has an id that the kernel makes. `owner` names another agent whose note it is; without it the
agent's own is meant. Notes of others are there for whom their owner granted the verb.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.names import (
    AgentName,
    GrantVerbs,
    GroupName,
    K,
    Name,
    Query,
    Request,
    Row,
    SearchMode,
    SyscallId,
    Ttl,
    refuse_blank,
)

MAX_NOTE_BYTES = 256 * 1024
MIN_BLOCK_BYTES = 4 * 1024
MAX_BLOCK_BYTES = 1024 * 1024 * 1024
DEFAULT_BLOCK_BYTES = 16 * 1024 * 1024  # of an agent that never asked for another size

NoteId = SyscallId  # 32 hex digits
NoteText = Annotated[str, Meta(min_length=1, max_length=MAX_NOTE_BYTES)]
Word = Annotated[str, Meta(min_length=1, max_length=128)]
Words = Annotated[Row[Word], Meta(max_length=64)]
Links = Annotated[Row[NoteId], Meta(max_length=256)]
Category = Annotated[str, Meta(max_length=128)]
ContextLine = Annotated[str, Meta(max_length=2_000)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=128)]
Metadata = Annotated[dict[MetadataKey, Any], Meta(max_length=64)]
Watermark = Annotated[float, Meta(gt=0.0, le=1.0)]
MAX_RECORDS = 1_000  # of one page, and of one restore
RecordId = Annotated[str, Meta(min_length=1, max_length=128)]
UnixTime = Annotated[float, Meta(ge=0.0, le=1e11)]  # s
Version = Annotated[int, Meta(ge=1)]


class OfNote(Request, frozen=True):
    """What is asked of one note."""

    note: NoteId
    owner: AgentName | None = None


class MemoryAlloc(Request, frozen=True, tag="memory.alloc"):
    """Set the size of the agent's block in Redis, and how its notes are chosen to leave it."""

    bytes: Annotated[int, Meta(ge=MIN_BLOCK_BYTES, le=MAX_BLOCK_BYTES)] = DEFAULT_BLOCK_BYTES
    k: Annotated[int, Meta(ge=1, le=16)] = 2  # of LRU-K: how many references count
    correlated_s: Annotated[float, Meta(ge=0.0, le=3_600.0)] = 1.0  # references so close are one
    high: Watermark = 0.8  # of the bytes: from here on notes are swapped out ...
    low: Watermark = 0.6  # ... down to here


class MemoryAdd(Request, frozen=True, tag="memory.add"):
    """Add a note. With `evolve` a model writes its keywords, context and tags, links it to its
    neighbours, and may rewrite theirs (agentic memory). With `dedupe` a note of the agent that has
    the same content already, to the character, is returned as it is: its `existing` says so.
    """  # noqa: D205

    content: NoteText
    keywords: Words = ()
    tags: Words = ()
    category: Category = ""
    context: ContextLine = ""  # one line on what it is about
    links: Links = ()
    metadata: Metadata = field(default_factory=dict)
    ttl_s: Ttl | None = None
    evolve: bool = False
    core: Name | None = None  # whose model `evolve` uses
    dedupe: bool = False  # not a second one with the same content; turns of a log do not count


class MemoryGet(OfNote, frozen=True, tag="memory.get"):
    """Return a note; one that was swapped out comes back into the block."""

    version: Version | None = None  # an older one; None: as it is now


class MemoryUpdate(OfNote, frozen=True, tag="memory.update"):
    """Change a note; what is left out stays as it is, of `metadata` each key that is not given
    (null takes a key out). The old version is kept.
    """  # noqa: D205

    content: NoteText | None = None
    keywords: Words | None = None
    tags: Words | None = None
    category: Category | None = None
    context: ContextLine | None = None
    links: Links | None = None
    metadata: Metadata | None = None
    if_version: Version | None = None  # refuse with `version-conflict` if it is another by now


class MemoryRemove(OfNote, frozen=True, tag="memory.remove"):
    """Delete a note and its versions (class `delete`)."""


class NoteFilter(Request, frozen=True, kw_only=True):
    """Which notes are meant: those that keep to all that is given."""

    tags: Words = ()  # all of them
    any_tags: Words = ()  # one of them
    category: Category | None = None
    metadata: Metadata | None = None  # it has these keys with these values
    in_program: Annotated[str, Meta(max_length=256)] | None = None  # which added them
    since: UnixTime | None = None  # when they were added ...
    until: UnixTime | None = None  # ... not at this moment any more

    def __post_init__(self) -> None:
        """Refuse a time that has ended before it begins: nothing could ever be found."""
        since, until = self.since, self.until
        if isinstance(since, int | float) and isinstance(until, int | float) and since > until:
            raise InvalidSyscall(
                f"`since` ({since:.15g}) is after `until` ({until:.15g})",
                field="body.since",
                remedy="give the earlier time as `since`, or leave one of them out",
            )


class MemoryList(NoteFilter, frozen=True, tag="memory.list"):
    """List notes, oldest first, without reading them into the block."""

    owner: AgentName | None = None
    notes: Links | None = None  # of these alone, each by its id
    newest_first: bool = False
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    after: NoteId | None = None  # the last one of the page before


class MemorySearch(NoteFilter, frozen=True, tag="memory.search"):
    """Find notes by meaning, by words, or by both, best first."""

    query: Query
    k: K = 10
    mode: SearchMode = "hybrid"
    owner: AgentName | None = None  # one agent's; None: own ones
    shared: bool = False  # own ones and all that others granted `search` on
    min_score: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    follow_links: bool = False  # the notes that those found are linked with come after them

    def __post_init__(self) -> None:
        """Refuse a blank query."""
        super().__post_init__()
        refuse_blank(self.query)


class MemoryContext(Request, frozen=True, tag="memory.context"):
    """Return what is worth recalling for a query as one text of a bounded number of tokens."""

    query: Query
    max_tokens: Annotated[int, Meta(ge=1, le=131_072)] = 512
    shared: bool = False
    core: Name | None = None  # whose tokenizer counts; None: a quarter of the bytes

    def __post_init__(self) -> None:
        """Refuse a blank query."""
        refuse_blank(self.query)


class MemoryLog(Request, frozen=True, tag="memory.log"):
    """Append a turn of a conversation, or a tool's result, to the program's log: a note of its
    own category (`conversation` or `tool`), in order.
    """  # noqa: D205

    role: Literal["user", "assistant", "system", "tool"]
    content: NoteText
    tool: Annotated[str, Meta(max_length=128)] = ""  # of a tool's result: which
    metadata: Metadata = field(default_factory=dict)
    ttl_s: Ttl | None = None
    # When it was said, not before the turn before it in the program's log; None: now.
    at: UnixTime | None = None


class MemoryHistory(OfNote, frozen=True, tag="memory.history"):
    """List the versions of a note, newest first, with who changed what."""


class MemoryRollback(Request, frozen=True, tag="memory.rollback"):
    """Make an older version the newest one (class `rollback`). Nothing is lost."""

    note: NoteId
    version: Version
    owner: AgentName | None = None


class MemoryUndo(Request, frozen=True, tag="memory.undo"):
    """Take back all that an `evolve` did to other notes, by the id of its syscall."""

    syscall_id: SyscallId


class MemoryClear(NoteFilter, frozen=True, tag="memory.clear"):
    """Delete all of the agent's notes, or those that are meant (class `clear`)."""


class MemoryTtl(Request, frozen=True, tag="memory.ttl"):
    """Let a note expire; None: never. Where it comes sooner than before: class `delete`."""

    note: NoteId
    ttl_s: Ttl | None


class MemoryShare(Request, frozen=True, tag="memory.share"):
    """Grant verbs on a note, or on all notes, to a group or an agent (exactly one of the two)."""

    note: NoteId | None = None  # None: the whole block, what is added later too
    group: GroupName | None = None
    agent: AgentName | None = None
    verbs: GrantVerbs = ("read", "search")
    ttl_s: Ttl | None = None


class MemoryUnshare(Request, frozen=True, tag="memory.unshare"):
    """Take such grants back (class `unshare`); neither group nor agent: all of them."""

    note: NoteId | None = None
    group: GroupName | None = None
    agent: AgentName | None = None


class MemoryStat(Request, frozen=True, tag="memory.stat"):
    """Return the block's size and counters."""


class NoteRecord(Request, frozen=True):
    """A note as it is written into a file, and read from it: one line of JSON.

    Where `id` is given it tells what is restored already, by that note or from an earlier record.
    """

    content: NoteText
    id: RecordId | None = None
    keywords: Words = ()
    tags: Words = ()
    category: Category = ""
    context: ContextLine = ""
    links: Annotated[Row[RecordId], Meta(max_length=256)] = ()
    metadata: Metadata = field(default_factory=dict)
    program: Name | None = None  # which added it; None: the one that restores it
    is_turn: bool = False  # of that program's log
    previous: RecordId | None = None  # the turn before it; None: it begins a conversation
    created_at: UnixTime | None = None  # None: now
    updated_at: UnixTime | None = None  # None: as it was created
    expires_at: UnixTime | None = None


class MemoryDump(NoteFilter, frozen=True, tag="memory.dump"):
    """Return notes as records, in the order of adding, a page at a time."""

    owner: AgentName | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_RECORDS)] = 500
    after: NoteId | None = None  # the last one of the page before


class MemoryRestore(Request, frozen=True, tag="memory.restore"):
    """Add the notes of records to the agent's own, with their times and turns; all or none.

    What is there already is left as it is: the note with a record's id, or what was restored from
    a record with that id (without one: from an identical record). New notes have ids of their own.
    """

    records: Annotated[Row[NoteRecord], Meta(min_length=1, max_length=MAX_RECORDS)]


MemoryBody = (
    MemoryAlloc
    | MemoryAdd
    | MemoryGet
    | MemoryUpdate
    | MemoryRemove
    | MemoryList
    | MemorySearch
    | MemoryContext
    | MemoryLog
    | MemoryHistory
    | MemoryRollback
    | MemoryUndo
    | MemoryClear
    | MemoryTtl
    | MemoryShare
    | MemoryUnshare
    | MemoryStat
    | MemoryDump
    | MemoryRestore
)


# What comes back.


class Note(Struct, frozen=True, omit_defaults=True, tag="memory.note"):
    """A note as it is now, or was in `version`."""

    id: str
    owner: str
    content: str
    version: int
    created_at: float  # Unix time, s
    updated_at: float
    keywords: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    category: str = ""
    context: str = ""
    links: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    expires_at: float | None = None
    score: float | None = None  # of a search: from 0 to 1, comparable between queries of one mode
    existing: bool = False  # of an add with `dedupe`: it was there before


class Notes(Struct, frozen=True, omit_defaults=True, tag="memory.notes"):
    """Notes in the order that was asked for; `more`: there are further ones after the last.

    They have 8 MiB together at most, but for a single one. `unindexed`: so many of the notes that
    were searched, up to 1,000, are not found by meaning yet.
    """

    notes: tuple[Note, ...]
    more: bool = False
    unindexed: int = 0


class NoteVersion(Struct, frozen=True, omit_defaults=True):
    """One version in a note's history."""

    version: int
    at: float  # Unix time, s
    by: str  # the agent
    operation: str  # add, restore, update, rollback, evolve, undo
    syscall_id: str
    note: Note


class NoteHistory(Struct, frozen=True, omit_defaults=True, tag="memory.history"):
    """The versions of a note, newest first, up to 8 MiB; `more`: there are older ones."""

    versions: tuple[NoteVersion, ...]
    more: bool = False


class Recall(Struct, frozen=True, omit_defaults=True, tag="memory.recall"):
    """A text for a prompt, and the notes that it is made of, best first."""

    text: str
    tokens: int
    notes: tuple[str, ...]
    exact: bool  # whether a core's tokenizer counted
    unindexed: int = 0  # as of a search


class BlockStat(Struct, frozen=True, omit_defaults=True, tag="memory.stat"):
    """An agent's block: sizes in bytes, counters since it was made."""

    limit_bytes: int
    used_bytes: int
    resident_notes: int
    swapped_notes: int
    hits: int
    faults: int  # reads of notes that were swapped out
    swaps: int  # notes swapped out
    k: int
    correlated_s: float
    high: float
    low: float
    unindexed_notes: int = 0  # not found by meaning yet


class Evolved(Struct, frozen=True, omit_defaults=True, tag="memory.evolved"):
    """A note that a model worked on, and the ids of the neighbours whose text it changed."""

    note: Note
    changed: tuple[str, ...] = ()


class NoteRecords(Struct, frozen=True, omit_defaults=True, tag="memory.records"):
    """Notes as records; `more`: there are further ones after the last. 8 MiB at most, as Notes."""

    records: tuple[NoteRecord, ...]
    more: bool = False


class Restored(Struct, frozen=True, omit_defaults=True, tag="memory.restored"):
    """What became of records."""

    added: int = 0
    existing: int = 0  # there already: left as they are
    expired: int = 0  # by their `expires_at`: left out


MemoryResult = Note | Notes | NoteHistory | Recall | BlockStat | Evolved | NoteRecords | Restored
