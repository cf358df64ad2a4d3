"""Search in mounted directories: which files of the host were read, and the parts of their text.

Phase: expand.
Locks: `mount` for a moment; the other tables are new.
Undo: drops the tables; what is mounted is no longer searched.
"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0011"
down_revision = "0010"

ME = "(SELECT aios_agent_id())"
SIGNATURE = "aios_mount_chunk_matches(query tsquery, owners bigint[], most integer)"
# Mounts are their agent's alone: no grant reaches them.
MATCHES = f"""
CREATE FUNCTION {SIGNATURE} RETURNS TABLE (file_id bigint, ordinal integer)
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN RETURN QUERY
    SELECT c.file_id, c.ordinal FROM mount_chunk c
     WHERE c.words @@ query AND c.owner_id = aios_agent_id() LIMIT most;
END $$
"""


def upgrade() -> None:
    op.add_column(
        "mount",
        sa.Column("searchable", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.create_table(
        "mount_file",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        reference("mount_file", "mount_id", "mount"),
        reference("mount_file", "owner_id", "agent"),
        sa.Column("inner_path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mount_file"),
        sa.UniqueConstraint("mount_id", "inner_path", name="uq_mount_file_mount_id_inner_path"),
    )
    op.create_index("ix_mount_file_owner_id", "mount_file", ["owner_id"])
    model = sa.ForeignKey("embedding_model.id", name="fk_mount_chunk_model_id")
    op.create_table(
        "mount_chunk",
        reference("mount_chunk", "file_id", "mount_file"),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        reference("mount_chunk", "owner_id", "agent"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("words", TSVECTOR(), nullable=False),
        sa.Column("model_id", sa.SmallInteger(), model, nullable=True),
        sa.Column("vector", HALFVEC(), nullable=True),
        sa.PrimaryKeyConstraint("file_id", "ordinal", name="pk_mount_chunk"),
    )
    op.create_index("ix_mount_chunk_owner_id", "mount_chunk", ["owner_id"])
    op.create_index("ix_mount_chunk_words", "mount_chunk", ["words"], postgresql_using="gin")
    op.execute(
        "CREATE INDEX ix_mount_chunk_unembedded ON mount_chunk (file_id) WHERE model_id IS NULL"
    )
    op.execute(
        "CREATE INDEX ix_mount_chunk_vector_1 ON mount_chunk "
        "USING hnsw ((vector::halfvec(384)) halfvec_cosine_ops) WHERE model_id = 1"
    )
    for table in ("mount_file", "mount_chunk"):
        guard(table)
    make_function()


def reference(table: str, name: str, target: str) -> sa.Column[int]:
    key = sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{name}", ondelete="CASCADE")
    return sa.Column(name, sa.BigInteger(), key, nullable=False)


def guard(table: str) -> None:
    """Let an agent see its own rows, and the steward alone change any."""
    op.execute(f"GRANT SELECT ON {table} TO aios_agent")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO aios_steward")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY steward ON {table} TO aios_steward USING (true)")
    op.execute(
        f"CREATE POLICY agent_select ON {table} FOR SELECT TO aios_agent USING (owner_id = {ME})"
    )


def make_function() -> None:
    op.execute("GRANT CREATE ON SCHEMA public TO aios_steward")
    op.execute(MATCHES)
    op.execute(f"ALTER FUNCTION {SIGNATURE} OWNER TO aios_steward")
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO aios_agent, aios_steward")
    op.execute("REVOKE CREATE ON SCHEMA public FROM aios_steward")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {SIGNATURE}")
    op.drop_table("mount_chunk")
    op.drop_table("mount_file")
    op.drop_column("mount", "searchable")
