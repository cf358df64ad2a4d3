"""Columns and indexes that many tables have, and the columns of a table as queries name them."""

from collections.abc import Collection

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

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
    return Column(
        name,
        BigInteger,
        ForeignKey("agent.id", ondelete="CASCADE"),
        nullable=nullable,
        primary_key=key,
    )


def tenant_column() -> Column[int]:
    """Return the column that names a tenant."""
    return Column("tenant_id", BigInteger, ForeignKey("tenant.id"), nullable=False)


# The model whose row and index the migrations make; `aios reindex` makes others.
FIRST_MODEL = (1, "all-MiniLM-L6-v2-int8", 384)


def without_vector_index(name: str, order: str) -> Index:
    """Index the rows that wait for their vectors."""
    return Index(name, order, postgresql_where=text("model_id IS NULL"))


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
