"""The tables of the state modules: agents, groups, grants, notes, files, approvals, audit, effects.

Phase: expand.
Locks: none; the tables are new.
Undo: drops the tables, and with them all notes, files, grants and the audit log. The two roles and
the extension stay: other databases of the server may use them.
"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

# aios_agent: what the modules run as; sees what row-level security lets it see.
# aios_steward: the kernel's own duties over all agents (sweeps, indexing, the operator's commands).
ROLES = ("aios_agent", "aios_steward")

TABLES = (
    "audit",
    "embedding_model",
    "tenant",
    "agent",
    "privilege_group",
    "access_grant",
    "agent_token",
    "approval",
    "approval_rule",
    "blob",
    "directory",
    "effect",
    "membership",
    "memory_block",
    "mount",
    "note",
    "file",
    "note_version",
    "file_chunk",
    "file_version",
    "share_link",
)

MAKE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another database was faster
END $$;
DO $$ BEGIN
    IF NOT pg_has_role(current_user, '{role}', 'SET') THEN
        EXECUTE format('GRANT {role} TO %I WITH SET TRUE', current_user);
    END IF;
END $$;
GRANT USAGE ON SCHEMA public TO {role};
"""


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    for role in ROLES:
        op.execute(MAKE_ROLE.format(role=role))
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("syscall_id", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_tenant_actor_seq", "audit", ["tenant", "actor", "seq"], unique=False)
    op.create_table(
        "embedding_model",
        sa.Column("id", sa.SmallInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_embedding_model"),
        sa.UniqueConstraint("name", name="uq_embedding_model_name"),
    )
    op.create_table(
        "tenant",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_tenant"),
        sa.UniqueConstraint("name", name="uq_tenant_name"),
    )
    op.create_table(
        "agent",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("administrator", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("storage_limit_bytes", sa.BigInteger(), nullable=True),
        sa.Column(
            "storage_used_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_agent_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_agent"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_agent_tenant_id_name"),
    )
    op.create_table(
        "privilege_group",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_privilege_group_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_privilege_group"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_privilege_group_tenant_id_name"),
    )
    op.create_table(
        "access_grant",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("object_kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=True),
        sa.Column("group_id", sa.BigInteger(), nullable=True),
        sa.Column("verbs", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("granted_by", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(agent_id IS NULL) <> (group_id IS NULL)", name="ck_access_grant_one_grantee"
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_access_grant_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["granted_by"], ["agent.id"], name="fk_access_grant_granted_by", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["group_id"],
            ["privilege_group.id"],
            name="fk_access_grant_group_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_access_grant_owner_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_access_grant_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_access_grant"),
    )
    op.create_index("ix_access_grant_agent_id", "access_grant", ["agent_id"], unique=False)
    op.create_index("ix_access_grant_group_id", "access_grant", ["group_id"], unique=False)
    op.create_index(
        "ix_access_grant_object_kind_object_id",
        "access_grant",
        ["object_kind", "object_id"],
        unique=False,
    )
    op.create_index("ix_access_grant_owner_id", "access_grant", ["owner_id"], unique=False)
    op.create_table(
        "agent_token",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_agent_token_agent_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name="pk_agent_token"),
    )
    op.create_index("ix_agent_token_agent_id", "agent_token", ["agent_id"], unique=False)
    op.create_table(
        "approval",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("arguments", postgresql.JSONB(), nullable=False),
        sa.Column("arguments_sha256", sa.Text(), nullable=False),
        sa.Column("asked_sha256", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("diff", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resumed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("announced_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_approval_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_approval_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_approval"),
        sa.UniqueConstraint("job_id", "asked_sha256", name="uq_approval_job_id_asked_sha256"),
    )
    op.create_index("ix_approval_agent_id", "approval", ["agent_id"], unique=False)
    op.create_index("ix_approval_state_asked_at", "approval", ["state", "asked_at"], unique=False)
    op.create_table(
        "approval_rule",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=True),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_approval_rule_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_approval_rule_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_approval_rule"),
        sa.UniqueConstraint(
            "tenant_id",
            "agent_id",
            "operation",
            name="uq_approval_rule_tenant_id_agent_id_operation",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "blob",
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_blob_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "sha256", name="pk_blob"),
    )
    op.create_table(
        "directory",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("ancestors", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_directory_owner_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_directory_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_directory"),
        sa.UniqueConstraint("owner_id", "path", name="uq_directory_owner_id_path"),
    )
    op.create_table(
        "effect",
        sa.Column("syscall_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_effect_agent_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("syscall_id", name="pk_effect"),
    )
    op.create_index("ix_effect_agent_id", "effect", ["agent_id"], unique=False)
    op.create_index("ix_effect_at", "effect", ["at"], unique=False)
    op.create_table(
        "membership",
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column(
            "added_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agent.id"], name="fk_membership_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["group_id"], ["privilege_group.id"], name="fk_membership_group_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "agent_id", name="pk_membership"),
    )
    op.create_index("ix_membership_agent_id", "membership", ["agent_id"], unique=False)
    op.create_table(
        "memory_block",
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("limit_bytes", sa.BigInteger(), nullable=False),
        sa.Column("k", sa.SmallInteger(), nullable=False),
        sa.Column("correlated_s", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_memory_block_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", name="pk_memory_block"),
    )
    op.create_table(
        "mount",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("writable", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_mount_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_mount"),
        sa.UniqueConstraint("owner_id", "path", name="uq_mount_owner_id_path"),
    )
    op.create_table(
        "note",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("program", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column(
            "keywords", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column(
            "tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("category", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("context", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "links", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("words", postgresql.TSVECTOR(), nullable=False),
        sa.Column("model_id", sa.SmallInteger(), nullable=True),
        sa.Column("vector", HALFVEC(), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["embedding_model.id"], name="fk_note_model_id"),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_note_owner_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_note_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_note"),
        sa.UniqueConstraint("seq", name="uq_note_seq"),
    )
    op.create_index(
        "ix_note_expires_at",
        "note",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index("ix_note_owner_id_seq", "note", ["owner_id", "seq"], unique=False)
    op.create_index("ix_note_words", "note", ["words"], unique=False, postgresql_using="gin")
    op.create_table(
        "file",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("directory_id", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("locked_by", sa.BigInteger(), nullable=True),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["directory_id"], ["directory.id"], name="fk_file_directory_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["locked_by"], ["agent.id"], name="fk_file_locked_by", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_file_owner_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_file_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_file"),
        sa.UniqueConstraint("owner_id", "path", name="uq_file_owner_id_path"),
    )
    op.create_index("ix_file_directory_id", "file", ["directory_id"], unique=False)
    op.create_table(
        "note_version",
        sa.Column("note_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("by_agent_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("syscall_id", sa.Text(), nullable=False),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["by_agent_id"], ["agent.id"], name="fk_note_version_by_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["note_id"], ["note.id"], name="fk_note_version_note_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_note_version_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("note_id", "version", name="pk_note_version"),
    )
    op.create_index("ix_note_version_owner_id", "note_version", ["owner_id"], unique=False)
    op.create_index("ix_note_version_syscall_id", "note_version", ["syscall_id"], unique=False)
    op.create_table(
        "file_chunk",
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("words", postgresql.TSVECTOR(), nullable=False),
        sa.Column("model_id", sa.SmallInteger(), nullable=True),
        sa.Column("vector", HALFVEC(), nullable=True),
        sa.ForeignKeyConstraint(
            ["file_id"], ["file.id"], name="fk_file_chunk_file_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["embedding_model.id"], name="fk_file_chunk_model_id"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_file_chunk_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("file_id", "ordinal", name="pk_file_chunk"),
    )
    op.create_index("ix_file_chunk_owner_id", "file_chunk", ["owner_id"], unique=False)
    op.create_index(
        "ix_file_chunk_words", "file_chunk", ["words"], unique=False, postgresql_using="gin"
    )
    op.create_table(
        "file_version",
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("by_agent_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("syscall_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["by_agent_id"], ["agent.id"], name="fk_file_version_by_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["file_id"], ["file.id"], name="fk_file_version_file_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_file_version_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("file_id", "version", name="pk_file_version"),
    )
    op.create_index(
        "ix_file_version_owner_id_sha256", "file_version", ["owner_id", "sha256"], unique=False
    )
    op.create_table(
        "share_link",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["file.id"], name="fk_share_link_file_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["agent.id"], name="fk_share_link_owner_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name="pk_share_link"),
    )
    op.create_index("ix_share_link_file_id", "share_link", ["file_id"], unique=False)
    op.create_index("ix_share_link_owner_id", "share_link", ["owner_id"], unique=False)
    # ### end Alembic commands ###
    for table in TABLES:
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO aios_agent, aios_steward")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
