"""The ledger: syscalls, their transitions, the journal's position; and spilled snapshots.

Phase: expand.
Locks: none; the tables are new.
Undo: drops the tables and with them the history; snapshots that are spilled are lost, and their
generations start again from their prompts.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "syscall",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("program", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("slices", sa.Integer(), nullable=False),
        sa.Column("suspensions", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("ran_ms", sa.BigInteger(), nullable=False),
        sa.Column("error_code", sa.Text()),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_syscall"),
    )
    op.create_index("ix_syscall_submitted_at", "syscall", ["submitted_at"])
    op.create_table(
        "transition",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("stream_ms", sa.BigInteger(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer()),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("anomaly", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint(
            "source", "stream_ms", "stream_seq", "ordinal", name="pk_transition"
        ),
    )
    op.create_index("ix_transition_job_id", "transition", ["job_id"])
    op.create_table(
        "journal_position",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("stream_ms", sa.BigInteger(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_journal_position"),
    )
    op.create_table(
        "snapshot",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_snapshot"),
    )


def downgrade() -> None:
    op.drop_table("snapshot")
    op.drop_table("journal_position")
    op.drop_table("transition")
    op.drop_table("syscall")
