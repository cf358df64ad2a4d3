"""The tables of memory and storage, and what the operator lets there be of them.

Who may see which row is said twice: by the queries of the modules, and by row-level security for
the role `aios_agent`, under which they run. Times are Postgres' own clock.
"""

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

from aios_broker.access.tables import agent_column, moment_column, tenant_column
from aios_broker.ledger.tables import metadata as metadata  # of all tables, for the migrations

# The model whose row and index the migrations make; `aios reindex` makes others.
FIRST_MODEL = (1, "all-MiniLM-L6-v2-int8", 384)


def without_vector_index(name: str, order: str) -> Index:
    """Index the rows that wait for their vectors, by whose they are."""
    return Index(name, "owner_id", order, postgresql_where=text("model_id IS NULL"))


def nearest_index(name: str) -> Index:
    """Index the vectors of the first model: each model has an index of its own dimension."""
    number, _, dimension = FIRST_MODEL
    return Index(
        name,
        literal_column(f"(vector::halfvec({dimension}))").label("half"),
        postgresql_using="hnsw",
        postgresql_ops={"half": "halfvec_cosine_ops"},
        postgresql_where=text(f"model_id = {number}"),
    )


def words_index() -> Index:
    """Index the words of texts.

    Who writes puts its words in at once: with a list of those that are still to be put in, who
    happens to fill it does so for everybody, and each search reads it to its end.
    """
    return Index(None, "words", postgresql_using="gin", postgresql_with={"fastupdate": "off"})


def length_column() -> Column[int]:
    """Return the column of how many words a text has for search: stop words are none."""
    return Column("length", Integer, Computed("aios_length(words)", persisted=True), nullable=False)


def parts_table(name: str, files: str) -> Table:
    """Return a table of the parts of texts, with their words and vectors."""
    file = ForeignKey(f"{files}.id", ondelete="CASCADE")
    return Table(
        name,
        metadata,
        Column("file_id", BigInteger, file, primary_key=True),
        Column("ordinal", Integer, primary_key=True),
        agent_column("owner_id"),
        Column("version", Integer, nullable=False),
        Column("start", Integer, nullable=False),  # in characters
        Column("text", Text, nullable=False),
        Column("words", TSVECTOR, nullable=False),
        length_column(),
        Column("model_id", SmallInteger, ForeignKey("embedding_model.id")),
        Column("vector", HALFVEC),
        Index(None, "owner_id"),
        words_index(),
        without_vector_index(f"ix_{name}_unembedded", "file_id"),
        nearest_index(f"ix_{name}_vector_1"),
    )


embedding_model = Table(
    "embedding_model",
    metadata,
    Column("id", SmallInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("dimension", Integer, nullable=False),
    Column("active", Boolean, nullable=False, server_default=text("false")),  # one is
    moment_column("created_at", now=True),
)

# What a syscall did, with its result: it runs once, however often its worker dies.
effect = Table(
    "effect",
    metadata,
    Column("syscall_id", Text, primary_key=True),
    agent_column("agent_id", key=True),  # an id that another agent has used is not used up
    Column("kind", Text, nullable=False),
    moment_column("at", now=True),
    Column("result", LargeBinary, nullable=False),
    Index(None, "at"),
    Index(None, "agent_id"),
)

# The memory module.

memory_block = Table(
    "memory_block",
    metadata,
    agent_column("owner_id", key=True),
    Column("limit_bytes", BigInteger, nullable=False),
    Column("k", SmallInteger, nullable=False),
    Column("correlated_s", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("low", Double, nullable=False),
    moment_column("created_at", now=True),
)

note = Table(
    "note",
    metadata,
    Column("id", Text, primary_key=True),  # 32 hex digits
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),  # of listing
    tenant_column(),
    agent_column("owner_id"),
    Column("program", Text, nullable=False, server_default=text("''")),
    # In its program's log, from 1; a number is left out where the conversation paused.
    Column("turn", Integer),
    Column("content", Text, nullable=False),
    Column(
        "content_hash", BigInteger, Computed("hashtextextended(content, 0)", persisted=True)
    ),  # by which an identical one is found
    Column("keywords", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("tags", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("category", Text, nullable=False, server_default=text("''")),
    Column("context", Text, nullable=False, server_default=text("''")),
    Column("links", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("version", Integer, nullable=False, server_default=text("1")),
    # Of its older versions that are kept; by triggers (migrations/schema/limits.sql).
    Column("old_bytes", BigInteger, nullable=False, server_default=text("0")),
    moment_column("created_at", now=True),
    moment_column("updated_at", now=True),
    moment_column("expires_at", nullable=True),
    Column("words", TSVECTOR, nullable=False),
    length_column(),
    Column("model_id", SmallInteger, ForeignKey("embedding_model.id")),  # null: not embedded yet
    Column("vector", HALFVEC),
    Index(None, "owner_id", "seq"),
    Index(None, "owner_id", "content_hash"),
    Index(None, "owner_id", "program", "turn", postgresql_where=text("turn IS NOT NULL")),
    words_index(),
    Index(None, "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    without_vector_index("ix_note_unembedded", "seq"),
    nearest_index("ix_note_vector_1"),
)

note_version = Table(
    "note_version",
    metadata,
    Column("note_id", Text, ForeignKey("note.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    agent_column("owner_id"),
    moment_column("at", now=True),
    agent_column("by_agent_id"),
    Column("operation", Text, nullable=False),  # add, restore, update, rollback, evolve, undo
    Column("syscall_id", Text, nullable=False),
    Column("body", JSONB, nullable=False),
    Index(None, "syscall_id"),
    Index(None, "owner_id"),
)

# The storage module.

directory = Table(
    "directory",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    agent_column("owner_id"),
    # The way down from the root, itself last: what a grant on a directory reaches.
    Column("ancestors", ARRAY(BigInteger), nullable=False),
    Column("path", Text, nullable=False),  # `/` is the root
    moment_column("created_at", now=True),
    UniqueConstraint("owner_id", "path"),
)

file = Table(
    "file",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    agent_column("owner_id"),
    Column(
        "directory_id", BigInteger, ForeignKey("directory.id", ondelete="CASCADE"), nullable=False
    ),
    Column("path", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    moment_column("created_at", now=True),
    moment_column("updated_at", now=True),
    agent_column("locked_by", nullable=True),
    moment_column("locked_until", nullable=True),
    UniqueConstraint("owner_id", "path"),
    Index(None, "directory_id"),
)

# Content by its digest, once per owner however many versions and files have it.
blob = Table(
    "blob",
    metadata,
    agent_column("owner_id", key=True),
    Column("sha256", Text, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
)

file_version = Table(
    "file_version",
    metadata,
    Column("file_id", BigInteger, ForeignKey("file.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    agent_column("owner_id"),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    moment_column("at", now=True),
    agent_column("by_agent_id"),
    Column("operation", Text, nullable=False),  # create, write, append, copy, rollback, move
    Column("syscall_id", Text, nullable=False),
    Index(None, "owner_id", "sha256"),
)

# The parts of the newest version of each text file, for search.
file_chunk = parts_table("file_chunk", "file")

mount = Table(
    "mount",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    agent_column("owner_id"),
    Column("path", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("writable", Boolean, nullable=False),
    moment_column("created_at", now=True),
    # What lies there is read into the two tables below, for search.
    Column("searchable", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("owner_id", "path"),
)

# Files of the host as they were when they were read last.
mount_file = Table(
    "mount_file",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("mount_id", BigInteger, ForeignKey("mount.id", ondelete="CASCADE"), nullable=False),
    agent_column("owner_id"),
    Column("inner_path", Text, nullable=False),  # below the mount
    Column("size_bytes", BigInteger, nullable=False),
    Column("changed_at", Double, nullable=False),  # Unix time, s, as the host tells it
    Column("version", Integer, nullable=False, server_default=text("1")),
    UniqueConstraint("mount_id", "inner_path"),
    Index(None, "owner_id"),
)

mount_chunk = parts_table("mount_chunk", "mount_file")

share_link = Table(
    "share_link",
    metadata,
    Column("digest", Text, primary_key=True),
    agent_column("owner_id"),
    Column("file_id", BigInteger, ForeignKey("file.id", ondelete="CASCADE"), nullable=False),
    moment_column("created_at", now=True),
    moment_column("expires_at"),
    Index(None, "file_id"),
    Index(None, "owner_id"),
)

# What the operator sets: how much there may be of what can be piled up, and who is suspended.

object_limit = Table(
    "object_limit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", BigInteger, ForeignKey("tenant.id", ondelete="CASCADE")),
    agent_column("agent_id", nullable=True),  # null: every agent of the tenant; both: everybody
    Column("kind", Text, nullable=False),
    Column("most", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "agent_id", "kind", postgresql_nulls_not_distinct=True),
    Index(None, "agent_id"),
)

# Kept by triggers.
note_use = Table(
    "note_use",
    metadata,
    agent_column("owner_id", key=True),
    Column("count", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

# What BM25 weighs words by, of each owner's notes, parts of files and parts of mounts (`corpus`:
# the table). No key names the agent in `word_use`: it would be looked up for each new word.
text_use = Table(
    "text_use",
    metadata,
    Column("corpus", Text, primary_key=True),
    agent_column("owner_id", key=True),
    Column("texts", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
)
word_use = Table(
    "word_use",
    metadata,
    Column("corpus", Text, primary_key=True),
    Column("owner_id", BigInteger, primary_key=True),
    Column("word", Text, primary_key=True),
    Column("texts", BigInteger, nullable=False),  # that have it
)

# By name: also who is not known yet, and whole tenants (agent: the empty string).
suspension = Table(
    "suspension",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("agent", Text, primary_key=True),
    Column("by", Text, nullable=False),
    moment_column("at", now=True),
)
