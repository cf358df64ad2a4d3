"""The journal's entries as they are, one row per call instead of one per change of state.

Phase: expand. `transition` stays: schedulers of the release before go on writing to it, and what
it holds is read.
Locks: `syscall` for a moment (a column with a constant default; no row is rewritten).
Undo: drops what was entered since; `syscall` stays as it stands, its history is lost.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "journal_entry",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("stream_ms", sa.BigInteger(), nullable=False),
        sa.Column("stream_seq", sa.BigInteger(), nullable=False),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("lines", sa.Text(), nullable=False),
        sa.Column("anomalies", sa.Text(), nullable=False),
        sa.Column("names", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("source", "stream_ms", "stream_seq", name="pk_journal_entry"),
    )
    # To compress the lines would cost more time than all else that is done with them.
    op.execute("ALTER TABLE journal_entry ALTER COLUMN lines SET STORAGE EXTERNAL")
    op.add_column(
        "syscall", sa.Column("entries", sa.Text(), nullable=False, server_default=sa.text("''"))
    )
    # Room for a row's next state on its own page: no index has to learn of it.
    op.execute("ALTER TABLE syscall SET (fillfactor = 70)")


def downgrade() -> None:
    op.execute("ALTER TABLE syscall RESET (fillfactor)")
    op.drop_column("syscall", "entries")
    op.drop_table("journal_entry")
