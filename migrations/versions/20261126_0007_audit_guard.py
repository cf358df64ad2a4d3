"""The audit log is only added to: its owner, too, is refused a change.

Phase: expand.
Locks: `audit` for a moment.
Undo: the owner of the database may change lines again; `aios audit verify` still finds it.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

FUNCTION = """
CREATE FUNCTION aios_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the audit log is only added to' USING ERRCODE = 'insufficient_privilege';
END $$
"""


def upgrade() -> None:
    op.execute(FUNCTION)
    op.execute(
        "CREATE TRIGGER audit_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION aios_audit_guard()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER audit_guard ON audit")
    op.execute("DROP FUNCTION aios_audit_guard()")
