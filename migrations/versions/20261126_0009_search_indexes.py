"""Search by meaning: the first embedding model, and the indexes of its vectors.

Phase: expand.
Locks: `note` and `file_chunk` against writing while their indexes are built (moments: they are new
in this release).
Undo: drops the indexes and the model's row; vectors are taken out of the rows, `aios reindex`
makes them again.
"""

from alembic import op

revision = "0009"
down_revision = "0007"

MODEL = "INSERT INTO embedding_model (id, name, dimension, active) OVERRIDING SYSTEM VALUE "
VALUES = "VALUES (1, 'all-MiniLM-L6-v2-int8', 384, true)"


def upgrade() -> None:
    op.execute(MODEL + VALUES)
    op.execute("SELECT setval(pg_get_serial_sequence('embedding_model', 'id'), 1)")
    for table, order in (("note", "seq"), ("file_chunk", "file_id")):
        op.execute(
            f"CREATE INDEX ix_{table}_unembedded ON {table} ({order}) WHERE model_id IS NULL"
        )
        op.execute(
            f"CREATE INDEX ix_{table}_vector_1 ON {table} "
            "USING hnsw ((vector::halfvec(384)) halfvec_cosine_ops) WHERE model_id = 1"
        )


def downgrade() -> None:
    for table in ("file_chunk", "note"):
        op.execute(f"DROP INDEX ix_{table}_vector_1")
        op.execute(f"UPDATE {table} SET model_id = NULL, vector = NULL")
        op.execute(f"DROP INDEX ix_{table}_unembedded")
    op.execute("DELETE FROM embedding_model")
