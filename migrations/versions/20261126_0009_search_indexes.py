"""Search: the first embedding model, the indexes of its vectors, and matching by words.

Under row-level security Postgres does not ask the index of words first: the match could tell of
rows that are not seen. So two functions of the steward's match, and look themselves at what the
session's agent may see; the rows are then read under row-level security as all others.

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

# Up to `most` keys of rows that match and that the agent may see; of these owners alone, or all.
MATCHES = {
    "aios_note_matches(query tsquery, owners bigint[], most integer)": (
        "TABLE (id text)",
        "blocks bigint[] := aios_blocks('see'); notes text[] := aios_notes('see');",
        """
        SELECT n.id FROM note n WHERE n.words @@ query
           AND (owners IS NULL OR n.owner_id = ANY (owners))
           AND (n.owner_id = aios_agent_id() OR n.owner_id = ANY (blocks) OR n.id = ANY (notes))
         LIMIT most""",
    ),
    "aios_file_chunk_matches(query tsquery, owners bigint[], most integer)": (
        "TABLE (file_id bigint, ordinal integer)",
        "files bigint[] := aios_files('see');",
        """
        SELECT c.file_id, c.ordinal FROM file_chunk c WHERE c.words @@ query
           AND (owners IS NULL OR c.owner_id = ANY (owners))
           AND (c.owner_id = aios_agent_id() OR c.file_id = ANY (files))
         LIMIT most""",
    ),
}
FUNCTION = """
CREATE FUNCTION {signature} RETURNS {returns} STABLE SECURITY DEFINER LANGUAGE plpgsql
    SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE {seen}
BEGIN RETURN QUERY {body}; END $$
"""


def upgrade() -> None:
    make_functions()
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


def make_functions() -> None:
    """Make the functions, the steward's, callable by the two roles alone."""
    op.execute("GRANT CREATE ON SCHEMA public TO aios_steward")
    for signature, (returns, seen, body) in MATCHES.items():
        op.execute(FUNCTION.format(signature=signature, returns=returns, seen=seen, body=body))
        op.execute(f"ALTER FUNCTION {signature} OWNER TO aios_steward")
        op.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO aios_agent, aios_steward")
    op.execute("REVOKE CREATE ON SCHEMA public FROM aios_steward")


def downgrade() -> None:
    for signature in MATCHES:
        op.execute(f"DROP FUNCTION {signature}")
    for table in ("file_chunk", "note"):
        op.execute(f"DROP INDEX ix_{table}_vector_1")
        op.execute(f"UPDATE {table} SET model_id = NULL, vector = NULL")
        op.execute(f"DROP INDEX ix_{table}_unembedded")
    op.execute("DELETE FROM embedding_model")
