"""The tables of the memory module."""

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

from aios_broker.ledger.tables import metadata
from aios_workers.modules.columns import (
    agent_column,
    moment_column,
    nearest_index,
    tenant_column,
    without_vector_index,
)

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
    Column("content", Text, nullable=False),
    Column("keywords", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("tags", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("category", Text, nullable=False, server_default=text("''")),
    Column("context", Text, nullable=False, server_default=text("''")),
    Column("links", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("version", Integer, nullable=False, server_default=text("1")),
    moment_column("created_at", now=True),
    moment_column("updated_at", now=True),
    moment_column("expires_at", nullable=True),
    Column("words", TSVECTOR, nullable=False),
    Column("model_id", SmallInteger, ForeignKey("embedding_model.id")),  # null: not embedded yet
    Column("vector", HALFVEC),
    Index(None, "owner_id", "seq"),
    Index(None, "words", postgresql_using="gin"),
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
    Column("operation", Text, nullable=False),  # add, update, rollback, evolve, undo
    Column("syscall_id", Text, nullable=False),
    Column("body", JSONB, nullable=False),
    Index(None, "syscall_id"),
    Index(None, "owner_id"),
)
