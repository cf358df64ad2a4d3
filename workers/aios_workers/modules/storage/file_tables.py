"""The tables of the storage module."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from aios_broker.ledger.tables import metadata
from aios_workers.modules.columns import agent_column, moment_column, parts_table, tenant_column

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
