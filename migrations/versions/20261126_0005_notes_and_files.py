"""What agents keep: notes, and files with their versions and the parts that search reads.

Phase: expand.
Locks: none; the tables are new.
Undo: drops the tables, and with them all notes and files.
"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

revision = "0005"
down_revision = "0004"

TABLES = (
    "embedding_model",
    "memory_block",
    "note",
    "note_version",
    "directory",
    "file",
    "blob",
    "file_version",
    "file_chunk",
    "mount",
    "share_link",
)


def upgrade() -> None:
    create_embedding_models()
    create_notes()
    create_note_versions()
    create_directories()
    create_files()
    create_file_contents()
    create_file_chunks()
    create_ways_in()
    for table in TABLES:
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO aios_agent, aios_steward")


def moment(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable)


def number(name: str = "id") -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), sa.Identity(always=True), nullable=False)


def words(name: str, *, default: str | None = None) -> sa.Column[str]:
    return sa.Column(
        name,
        sa.Text(),
        nullable=False,
        server_default=None if default is None else sa.text(f"'{default}'"),
    )


def array(name: str) -> sa.Column[object]:
    return sa.Column(name, ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False)


def whole(name: str, kind: type[sa.Integer] = sa.Integer) -> sa.Column[int]:
    return sa.Column(name, kind(), autoincrement=False, nullable=False)


def reference(
    table: str, name: str, target: str, *, nullable: bool = False, cascade: bool = True
) -> sa.Column[int]:
    key = sa.ForeignKey(
        f"{target}.id", name=f"fk_{table}_{name}", ondelete="CASCADE" if cascade else None
    )
    return sa.Column(name, sa.BigInteger(), key, nullable=nullable)


def owner_of(table: str, name: str = "owner_id") -> sa.Column[int]:
    return reference(table, name, "agent")


def tenant_of(table: str) -> sa.Column[int]:
    return reference(table, "tenant_id", "tenant", cascade=False)


def embedding_of(table: str) -> tuple[sa.Column[object], ...]:
    key = sa.ForeignKey("embedding_model.id", name=f"fk_{table}_model_id")
    return (
        sa.Column("words", TSVECTOR(), nullable=False),
        sa.Column("model_id", sa.SmallInteger(), key, nullable=True),
        sa.Column("vector", HALFVEC(), nullable=True),
    )


def create_embedding_models() -> None:
    op.create_table(
        "embedding_model",
        sa.Column("id", sa.SmallInteger(), sa.Identity(always=True), nullable=False),
        words("name"),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_embedding_model"),
        sa.UniqueConstraint("name", name="uq_embedding_model_name"),
    )
    op.create_table(
        "memory_block",
        owner_of("memory_block"),
        whole("limit_bytes", sa.BigInteger),
        whole("k", sa.SmallInteger),
        *(
            sa.Column(name, sa.Double(), nullable=False)
            for name in (
                "correlated_s",
                "high",
                "low",
            )
        ),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("owner_id", name="pk_memory_block"),
    )


def create_notes() -> None:
    op.create_table(
        "note",
        words("id"),
        number("seq"),
        tenant_of("note"),
        owner_of("note"),
        words("program", default=""),
        words("content"),
        array("keywords"),
        array("tags"),
        words("category", default=""),
        words("context", default=""),
        array("links"),
        sa.Column("metadata", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        moment("created_at", now=True),
        moment("updated_at", now=True),
        moment("expires_at", nullable=True),
        *embedding_of("note"),
        sa.PrimaryKeyConstraint("id", name="pk_note"),
        sa.UniqueConstraint("seq", name="uq_note_seq"),
    )
    op.create_index(
        "ix_note_expires_at",
        "note",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index("ix_note_owner_id_seq", "note", ["owner_id", "seq"])
    op.create_index("ix_note_words", "note", ["words"], postgresql_using="gin")


def create_note_versions() -> None:
    key = sa.ForeignKey("note.id", name="fk_note_version_note_id", ondelete="CASCADE")
    op.create_table(
        "note_version",
        sa.Column("note_id", sa.Text(), key, nullable=False),
        whole("version"),
        owner_of("note_version"),
        moment("at", now=True),
        owner_of("note_version", "by_agent_id"),
        words("operation"),
        words("syscall_id"),
        sa.Column("body", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("note_id", "version", name="pk_note_version"),
    )
    op.create_index("ix_note_version_owner_id", "note_version", ["owner_id"])
    op.create_index("ix_note_version_syscall_id", "note_version", ["syscall_id"])


def create_directories() -> None:
    op.create_table(
        "directory",
        number(),
        tenant_of("directory"),
        owner_of("directory"),
        sa.Column("ancestors", ARRAY(sa.BigInteger()), nullable=False),
        words("path"),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_directory"),
        sa.UniqueConstraint("owner_id", "path", name="uq_directory_owner_id_path"),
    )


def create_files() -> None:
    op.create_table(
        "file",
        number(),
        tenant_of("file"),
        owner_of("file"),
        reference("file", "directory_id", "directory"),
        words("path"),
        whole("version"),
        whole("size_bytes", sa.BigInteger),
        words("sha256"),
        moment("created_at", now=True),
        moment("updated_at", now=True),
        reference("file", "locked_by", "agent", nullable=True),
        moment("locked_until", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_file"),
        sa.UniqueConstraint("owner_id", "path", name="uq_file_owner_id_path"),
    )
    op.create_index("ix_file_directory_id", "file", ["directory_id"])


def create_file_contents() -> None:
    op.create_table(
        "blob",
        owner_of("blob"),
        words("sha256"),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        whole("size_bytes", sa.BigInteger),
        sa.PrimaryKeyConstraint("owner_id", "sha256", name="pk_blob"),
    )
    op.create_table(
        "file_version",
        reference("file_version", "file_id", "file"),
        whole("version"),
        owner_of("file_version"),
        words("sha256"),
        whole("size_bytes", sa.BigInteger),
        moment("at", now=True),
        owner_of("file_version", "by_agent_id"),
        words("operation"),
        words("syscall_id"),
        sa.PrimaryKeyConstraint("file_id", "version", name="pk_file_version"),
    )
    op.create_index("ix_file_version_owner_id_sha256", "file_version", ["owner_id", "sha256"])


def create_file_chunks() -> None:
    op.create_table(
        "file_chunk",
        reference("file_chunk", "file_id", "file"),
        whole("ordinal"),
        owner_of("file_chunk"),
        whole("version"),
        whole("start"),
        words("text"),
        *embedding_of("file_chunk"),
        sa.PrimaryKeyConstraint("file_id", "ordinal", name="pk_file_chunk"),
    )
    op.create_index("ix_file_chunk_owner_id", "file_chunk", ["owner_id"])
    op.create_index("ix_file_chunk_words", "file_chunk", ["words"], postgresql_using="gin")


def create_ways_in() -> None:
    op.create_table(
        "mount",
        number(),
        owner_of("mount"),
        words("path"),
        words("source"),
        sa.Column("writable", sa.Boolean(), nullable=False),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_mount"),
        sa.UniqueConstraint("owner_id", "path", name="uq_mount_owner_id_path"),
    )
    op.create_table(
        "share_link",
        words("digest"),
        owner_of("share_link"),
        reference("share_link", "file_id", "file"),
        moment("created_at", now=True),
        moment("expires_at"),
        sa.PrimaryKeyConstraint("digest", name="pk_share_link"),
    )
    op.create_index("ix_share_link_file_id", "share_link", ["file_id"])
    op.create_index("ix_share_link_owner_id", "share_link", ["owner_id"])


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
