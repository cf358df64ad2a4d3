"""All tables beside the ledger's, for the migrations; and those that belong to no module alone.

Who may see which row is said twice: by the queries of the modules, and by row-level security for
the role `aios_agent`, under which they run. Times are Postgres' own clock.
"""

from sqlalchemy import (
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)

from aios_broker.ledger.tables import metadata as metadata  # of all
from aios_workers.approvals import approval_tables as approval_tables
from aios_workers.modules.access import access_tables as access_tables
from aios_workers.modules.columns import agent_column, moment_column
from aios_workers.modules.memory import note_tables as note_tables
from aios_workers.modules.storage import file_tables as file_tables

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
    agent_column("agent_id"),
    Column("kind", Text, nullable=False),
    moment_column("at", now=True),
    Column("result", LargeBinary, nullable=False),
    Index(None, "at"),
    Index(None, "agent_id"),
)
