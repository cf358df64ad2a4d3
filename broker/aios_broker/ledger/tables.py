"""The ledger's tables. A test compares them with what the migrations build."""

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    make_url,
)

metadata = MetaData(
    naming_convention={
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

# One row per syscall, as it stands: the fold of its transitions.
syscall = Table(
    "syscall",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("module", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("program", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),  # of the contract
    Column("submitted_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),  # the first claim
    Column("ended_at", DateTime(timezone=True)),
    Column("attempts", Integer, nullable=False),
    Column("slices", Integer, nullable=False),  # how often it ran
    Column("suspensions", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("ran_ms", BigInteger, nullable=False),
    Column("error_code", Text),
    Column("worker", Text, nullable=False),  # the last one; empty: none yet
    Column("core", Text, nullable=False, server_default=""),  # the last one that worked on it
    Column("cost_nano", BigInteger, nullable=False, server_default="0"),  # on all cores
    Column("currency", Text, nullable=False, server_default=""),  # empty: no core had a price
    # Ids of the journal entries that speak of it, as Redis writes them, a space between.
    Column("entries", Text, nullable=False, server_default=""),
    Index(None, "submitted_at"),
    # A program with all of its tree, newest first.
    Index(
        "ix_syscall_program",
        "agent",
        "program",
        "submitted_at",
        postgresql_ops={"program": "text_pattern_ops"},
    ),
    # Room for a row's next state on its own page: no index has to learn of it.
    postgresql_with={"fillfactor": 70},
)

# Every change of state, as the journal had it: one row per entry, which is one call of a step.
journal_entry = Table(
    "journal_entry",
    metadata,
    Column("source", Text, primary_key=True),  # whose journal: the deployment's key prefix
    Column("stream_ms", BigInteger, primary_key=True),  # the entry's id, both halves
    Column("stream_seq", BigInteger, primary_key=True),
    Column("module", Text, nullable=False),
    Column("lines", Text, nullable=False),  # one per change; ledger/journal.py says what is in it
    # Lines, from 0, that cannot be read or that the transition table forbids; a space between.
    Column("anomalies", Text, nullable=False),
    # Of all agents, programs and tenants whose syscalls it speaks of, each between two line breaks;
    # `?` where one is not known.
    Column("names", Text, nullable=False),
)

# What each program was charged on each core, by the hour: the sums of what the journal says.
usage = Table(
    "usage",
    metadata,
    Column("source", Text, primary_key=True),
    Column("hour", DateTime(timezone=True), primary_key=True),  # its beginning, by Redis' clock
    Column("module", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("agent", Text, primary_key=True),
    Column("program", Text, primary_key=True),
    Column("core", Text, primary_key=True),  # empty: none worked on it
    Column("currency", Text, primary_key=True),  # of the core's price; empty: it has none
    Column("tokens", BigInteger, nullable=False),  # output
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("ran_ms", BigInteger, nullable=False),
    Column("finished", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),  # ended otherwise: failed, cancelled, late
    Column("cached_tokens", BigInteger, nullable=False),  # of the prompt tokens
    Column("cost_nano", BigInteger, nullable=False),
)

# Every change of a quota; only ever added to. The quotas in force are those in Redis.
quota_change = Table(
    "quota_change",
    metadata,
    Column("source", Text, primary_key=True),
    Column("stream_ms", BigInteger, primary_key=True),
    Column("stream_seq", BigInteger, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("module", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("limits", Text, nullable=False),  # empty: it was unset
    Column("who", Text, nullable=False),
)

# How far each journal (one per key prefix) has been drained; moves with the rows it stands for.
journal_position = Table(
    "journal_position",
    metadata,
    Column("source", Text, primary_key=True),
    Column("stream_ms", BigInteger, nullable=False),
    Column("stream_seq", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),  # how many, since the journal's beginning
)

# How far the ledger was told in traces, and which runs of programs are not over yet.
trace_position = Table(
    "trace_position",
    metadata,
    Column("source", Text, primary_key=True),
    Column("stream_ms", BigInteger, nullable=False),
    Column("stream_seq", BigInteger, nullable=False),
    Column("runs", Text, nullable=False),  # JSON: traces/follower.py says what is in it
)

# Snapshots of suspended generations that Redis has no room for.
snapshot = Table(
    "snapshot",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
    Column("stored_at", DateTime(timezone=True), nullable=False),
)


def column_types(table: Table) -> list[str]:
    """Return the names of the types of a table's columns, as Postgres writes them."""
    dialect = make_url("postgresql+psycopg://").get_dialect()()
    return [column.type.compile(dialect).lower() for column in table.c]
