"""The tables of the state modules, beside the ledger's; those of files are in `file_tables`.

Who may see which row is said twice: by the queries of the modules, and by row-level security for
the role `aios_agent`, under which they run (migrations/). Times are Postgres' own clock.
"""

from __future__ import annotations

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
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
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

from aios_broker.ledger.tables import metadata as metadata  # of all: for the migrations
from aios_workers.modules.columns import (
    agent_column,
    moment_column,
    nearest_index,
    tenant_column,
    without_vector_index,
)
from aios_workers.modules.storage import file_tables as file_tables

# Who there is.

tenant = Table(
    "tenant",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    moment_column("created_at", now=True),
)

agent = Table(
    "agent",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    Column("name", Text, nullable=False),
    Column("administrator", Boolean, nullable=False, server_default=text("false")),
    Column("storage_limit_bytes", BigInteger),  # null: the deployment's default
    Column("storage_used_bytes", BigInteger, nullable=False, server_default=text("0")),
    moment_column("created_at", now=True),
    UniqueConstraint("tenant_id", "name"),
)

# Digests only: the token itself is nowhere. Redis has a copy, for the border of the workers.
agent_token = Table(
    "agent_token",
    metadata,
    Column("digest", Text, primary_key=True),  # BLAKE2b-256, hex
    agent_column("agent_id"),
    moment_column("created_at", now=True),
    moment_column("expires_at", nullable=True),
    moment_column("revoked_at", nullable=True),
    Index(None, "agent_id"),
)

privilege_group = Table(
    "privilege_group",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    Column("name", Text, nullable=False),
    moment_column("created_at", now=True),
    UniqueConstraint("tenant_id", "name"),
)

membership = Table(
    "membership",
    metadata,
    Column(
        "group_id",
        BigInteger,
        ForeignKey("privilege_group.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    agent_column("agent_id", key=True),
    Column("role", Text, nullable=False),  # member, admin
    moment_column("added_at", now=True),
    Index(None, "agent_id"),
)

# A verb on an object of `owner_id`, for one agent or one group. Taken back: deleted.
access_grant = Table(
    "access_grant",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    agent_column("owner_id"),
    Column("object_kind", Text, nullable=False),  # block, note, file, directory
    # A note's id; the number of a file or a directory as text; of a block its owner's.
    Column("object_id", Text, nullable=False),
    agent_column("agent_id", nullable=True),
    Column("group_id", BigInteger, ForeignKey("privilege_group.id", ondelete="CASCADE")),
    Column("verbs", ARRAY(Text), nullable=False),
    agent_column("granted_by"),
    moment_column("created_at", now=True),
    moment_column("expires_at", nullable=True),
    CheckConstraint("(agent_id IS NULL) <> (group_id IS NULL)", name="one_grantee"),
    Index(None, "object_kind", "object_id"),
    Index(None, "agent_id"),
    Index(None, "group_id"),
    Index(None, "owner_id"),
)

# What agents keep: memory.

embedding_model = Table(
    "embedding_model",
    metadata,
    Column("id", SmallInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("dimension", Integer, nullable=False),
    Column("active", Boolean, nullable=False, server_default=text("false")),  # one is
    moment_column("created_at", now=True),
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

# What people decide, and what happened.

approval = Table(
    "approval",
    metadata,
    Column("id", Text, primary_key=True),  # 32 hex digits
    tenant_column(),
    agent_column("agent_id"),
    Column("job_id", Text, nullable=False),
    Column("module", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("arguments", JSONB, nullable=False),  # those that will run: edited ones, if they were
    Column("arguments_sha256", Text, nullable=False),
    Column("asked_sha256", Text, nullable=False),  # of those that were asked for
    Column("what", Text, nullable=False),
    Column("diff", Text, nullable=False, server_default=text("''")),
    Column("state", Text, nullable=False),  # waiting, approved, denied, expired, used
    moment_column("asked_at", now=True),
    moment_column("expires_at"),
    Column("decided_by", Text, nullable=False, server_default=text("''")),
    moment_column("decided_at", nullable=True),
    Column("reason", Text, nullable=False, server_default=text("''")),
    moment_column("used_at", nullable=True),
    moment_column("resumed_at", nullable=True),  # the job was put back into its queue
    moment_column("announced_at", nullable=True),  # the webhook has it
    UniqueConstraint("job_id", "asked_sha256"),
    Index(None, "state", "asked_at"),
    Index(None, "agent_id"),
)

approval_rule = Table(
    "approval_rule",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    agent_column("agent_id", nullable=True),  # null: all agents of the tenant
    Column("operation", Text, nullable=False),
    Column("rule", Text, nullable=False),
    UniqueConstraint("tenant_id", "agent_id", "operation", postgresql_nulls_not_distinct=True),
)

# Only ever added to; each line's hash covers the line before.
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    moment_column("at"),
    Column("tenant", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("syscall_id", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Column("previous_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index(None, "tenant", "actor", "seq"),
)

# What a syscall did, with its result: it runs once, however often its worker dies.
effect = Table(
    "effect",
    metadata,
    Column("syscall_id", Text, primary_key=True),
    agent_column("agent_id"),
    Column("kind", Text, nullable=False),
    moment_column("at", now=True),
    Column("result", LargeBinary, nullable=False),
    Index(None, "at"),
    Index(None, "agent_id"),
)
