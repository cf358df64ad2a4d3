"""The tables beside the ledger's, the columns they share, and how queries name them.

Who may see which row is said twice: by the queries of the modules, and by row-level security for
the role `aios_agent`, under which they run. Times are Postgres' own clock.
"""

from collections.abc import Collection

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
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
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TSVECTOR

from aios_broker.ledger.tables import metadata as metadata  # of all tables, for the migrations


def selected(table: Table, alias: str, *, but: Collection[str] = ()) -> str:
    """Return a table's columns as a query selects them; moments as Unix time, s."""
    return ", ".join(
        f"extract(epoch FROM {alias}.{column.name})::float8 AS {column.name}"
        if isinstance(column.type, DateTime)
        else f"{alias}.{column.name}"
        for column in table.c
        if column.name not in but
    )


def inserted(table: Table, *, but: Collection[str] = ()) -> str:
    """Return the statement that inserts a row, each value by its column's name."""
    names = [column.name for column in table.c if column.name not in but]
    values = ", ".join(f"%({name})s" for name in names)
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values})"


def moment_column(name: str, *, nullable: bool = False, now: bool = False) -> Column[object]:
    """Return a column of a point in time; `now`: of the row's making unless said."""
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=text("now()") if now else None,
    )


def agent_column(name: str, *, nullable: bool = False, key: bool = False) -> Column[int]:
    """Return a column that names an agent; the row goes with it."""
    agent = ForeignKey("agent.id", ondelete="CASCADE")
    return Column(name, BigInteger, agent, nullable=nullable, primary_key=key)


def by_agent_column(name: str) -> Column[int]:
    """Return a column of who did it, which stays as long as the row; null: no agent did."""
    return Column(name, BigInteger, ForeignKey("agent.id"))


def tenant_column() -> Column[int]:
    """Return the column that names a tenant."""
    return Column("tenant_id", BigInteger, ForeignKey("tenant.id"), nullable=False)


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
        Column("model_id", SmallInteger, ForeignKey("embedding_model.id")),
        Column("vector", HALFVEC),
        Index(None, "owner_id"),
        Index(None, "words", postgresql_using="gin"),
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

# The access module: who there is, what is granted, and what happened.

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
    # What the operator gives: to administer the tenant, and to decide for its other agents.
    Column("administrator", Boolean, nullable=False, server_default=text("false")),
    Column("decides", Boolean, nullable=False, server_default=text("false")),
    by_agent_column("registered_by"),
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
    by_agent_column("issued_by"),
    Index(None, "agent_id"),
)

# What makes the ids that only their agent can have. Redis has it, and gets it back from here when
# it was emptied.
kernel_secret = Table(
    "kernel_secret",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
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

# Only ever added to; each line's hash covers the line before. Numbered from 1.
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
    Column("detail", JSON, nullable=False),  # its text as it was written: it is hashed
    Column("previous_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    CheckConstraint("seq > 0", name="numbered_from_1"),
    Index(None, "tenant", "actor", "seq"),
    Index("ix_audit_begin", "seq", postgresql_where=text("action = 'audit.begin'")),
)

# Approvals: what people decide, and by what rules they are asked.

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
    Column("objects", JSONB, nullable=False, server_default=text("'[]'")),  # as a person saw them
    Column("diff", Text, nullable=False, server_default=text("''")),
    Column("state", Text, nullable=False),  # waiting, approved, denied, expired, used
    moment_column("asked_at", now=True),
    moment_column("expires_at"),
    Column("decided_by", Text, nullable=False, server_default=text("''")),
    by_agent_column("decided_by_agent"),
    moment_column("decided_at", nullable=True),
    Column("reason", Text, nullable=False, server_default=text("''")),
    moment_column("used_at", nullable=True),
    moment_column("resumed_at", nullable=True),  # the job was put back into its queue
    moment_column("announced_at", nullable=True),  # the webhook has it
    UniqueConstraint("job_id", "agent_id", "asked_sha256"),
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

# By name: also who is not known yet, and whole tenants (agent: the empty string).
suspension = Table(
    "suspension",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("agent", Text, primary_key=True),
    Column("by", Text, nullable=False),
    moment_column("at", now=True),
)
