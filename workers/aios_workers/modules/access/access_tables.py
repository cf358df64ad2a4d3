"""The tables of the access module: who there is, what is granted, and what happened."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from aios_broker.ledger.tables import metadata
from aios_workers.modules.columns import agent_column, moment_column, tenant_column

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
