"""The tables of who may do what, what people decide and what happened; columns that tables share.

Who may see which row is said twice: by the queries that read them, and by row-level security for
the role `aios_agent`, under which agents' queries run. Times are Postgres' own clock.
"""

from collections.abc import Collection

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB

from aios_broker.ledger.tables import metadata


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
