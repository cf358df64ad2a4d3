"""Who there is, what is granted to whom, what people decide, and what happened.

Phase: expand.
Locks: none; the tables are new.
Undo: drops the tables, and with them all agents, grants, approvals and the audit log. The two roles
and the extension stay: other databases of the server may use them.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from aios_broker.contract.errors import InvalidConfig

revision = "0004"
down_revision = "0003"

# aios_agent: what the modules run as; sees what row-level security lets it see.
# aios_steward: the kernel's own duties over all agents (sweeps, indexing, the operator's commands).
ROLES = ("aios_agent", "aios_steward")

TABLES = (
    "tenant",
    "agent",
    "agent_token",
    "privilege_group",
    "membership",
    "access_grant",
    "approval",
    "approval_rule",
    "audit",
    "effect",
)

LEAST_PGVECTOR = (0, 8)  # half-precision vectors, and scans that go on until enough is found

FIND_PGVECTOR = """
    SELECT coalesce(installed_version, default_version)
    FROM pg_available_extensions WHERE name = 'vector'
"""

MAY_HAVE_PGVECTOR = """
    SELECT installed OR trusted OR current_setting('is_superuser')::boolean
    FROM pg_available_extension_versions WHERE name = 'vector'
    ORDER BY installed DESC, version DESC LIMIT 1
"""

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
    if not context.is_offline_mode():
        check_server()
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    for role in ROLES:
        op.execute(MAKE_ROLE.format(role=role))
    create_identities()
    create_groups()
    create_grants()
    create_approvals()
    create_records()
    for table in TABLES:
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO aios_agent, aios_steward")


def check_server() -> None:
    """Say what the server lacks before anything is made there.

    Raises:
        InvalidConfig: no pgvector, one that is too old, or a user that may not make roles.
    """
    connection = op.get_bind()
    version = connection.execute(sa.text(FIND_PGVECTOR)).scalar()
    if version is None or tuple(map(int, version.split(".")[:2])) < LEAST_PGVECTOR:
        found = "no extension `vector`" if version is None else f"pgvector {version}"
        raise InvalidConfig(
            f"this Postgres has {found}; memory and storage need pgvector 0.8 or newer",
            field="AIOS_DATABASE_URL",
            remedy="install pgvector on the server (its package, or the image pgvector/pgvector); "
            "one that is installed already: ALTER EXTENSION vector UPDATE",
        )
    if not connection.execute(sa.text(MAY_HAVE_PGVECTOR)).scalar():
        raise InvalidConfig(
            "the database's user may not make the extension `vector`",
            field="AIOS_DATABASE_URL",
            remedy="as a superuser, in this database: CREATE EXTENSION vector",
        )
    lacking = [role for role in ROLES if not may_become(connection, role)]
    if lacking:
        raise InvalidConfig(
            f"the database's user may neither make nor become the roles {', '.join(lacking)}",
            field="AIOS_DATABASE_URL",
            remedy="as a superuser: ALTER ROLE <user> CREATEROLE; where the roles are there "
            f"already: GRANT {', '.join(lacking)} TO <user> WITH ADMIN TRUE, SET TRUE",
        )


def may_become(connection: sa.Connection, role: str) -> bool:
    """Tell whether the user is a member of the role, may make itself one, or may make the role."""
    return bool(
        connection.execute(
            sa.text("""
        SELECT CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = :role)
            THEN pg_has_role(current_user, CAST(:role AS name), 'SET')
                 OR pg_has_role(current_user, CAST(:role AS name), 'MEMBER WITH ADMIN OPTION')
            ELSE rolcreaterole OR rolsuper END
        FROM pg_roles WHERE rolname = current_user
    """),
            {"role": role},
        ).scalar()
    )


def moment(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable)


def number() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def words(name: str, *, default: str | None = None) -> sa.Column[str]:
    return sa.Column(
        name,
        sa.Text(),
        nullable=False,
        server_default=None if default is None else sa.text(f"'{default}'"),
    )


def reference(
    table: str, name: str, target: str, *, nullable: bool = False, cascade: bool = True
) -> sa.Column[int]:
    key = sa.ForeignKey(
        f"{target}.id", name=f"fk_{table}_{name}", ondelete="CASCADE" if cascade else None
    )
    return sa.Column(name, sa.BigInteger(), key, nullable=nullable)


def tenant_of(table: str) -> sa.Column[int]:
    return reference(table, "tenant_id", "tenant", cascade=False)


def create_identities() -> None:
    op.create_table(
        "tenant",
        number(),
        words("name"),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_tenant"),
        sa.UniqueConstraint("name", name="uq_tenant_name"),
    )
    op.create_table(
        "agent",
        number(),
        tenant_of("agent"),
        words("name"),
        sa.Column("administrator", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("storage_limit_bytes", sa.BigInteger(), nullable=True),
        sa.Column(
            "storage_used_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_agent"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_agent_tenant_id_name"),
    )
    op.create_table(
        "agent_token",
        words("digest"),
        reference("agent_token", "agent_id", "agent"),
        moment("created_at", now=True),
        moment("expires_at", nullable=True),
        moment("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_agent_token"),
    )
    op.create_index("ix_agent_token_agent_id", "agent_token", ["agent_id"])


def create_groups() -> None:
    op.create_table(
        "privilege_group",
        number(),
        tenant_of("privilege_group"),
        words("name"),
        moment("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name="pk_privilege_group"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_privilege_group_tenant_id_name"),
    )
    op.create_table(
        "membership",
        reference("membership", "group_id", "privilege_group"),
        reference("membership", "agent_id", "agent"),
        words("role"),
        moment("added_at", now=True),
        sa.PrimaryKeyConstraint("group_id", "agent_id", name="pk_membership"),
    )
    op.create_index("ix_membership_agent_id", "membership", ["agent_id"])


def create_grants() -> None:
    op.create_table(
        "access_grant",
        number(),
        tenant_of("access_grant"),
        reference("access_grant", "owner_id", "agent"),
        words("object_kind"),
        words("object_id"),
        reference("access_grant", "agent_id", "agent", nullable=True),
        reference("access_grant", "group_id", "privilege_group", nullable=True),
        sa.Column("verbs", ARRAY(sa.Text()), nullable=False),
        reference("access_grant", "granted_by", "agent"),
        moment("created_at", now=True),
        moment("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_access_grant"),
        sa.CheckConstraint(
            "(agent_id IS NULL) <> (group_id IS NULL)", name="ck_access_grant_one_grantee"
        ),
    )
    for columns in (["object_kind", "object_id"], ["agent_id"], ["group_id"], ["owner_id"]):
        op.create_index(f"ix_access_grant_{'_'.join(columns)}", "access_grant", columns)


def create_approvals() -> None:
    op.create_table(
        "approval",
        words("id"),
        tenant_of("approval"),
        reference("approval", "agent_id", "agent"),
        *(words(name) for name in ("job_id", "module", "kind", "operation")),
        sa.Column("arguments", JSONB(), nullable=False),
        *(words(name) for name in ("arguments_sha256", "asked_sha256", "what")),
        words("diff", default=""),
        words("state"),
        moment("asked_at", now=True),
        moment("expires_at"),
        words("decided_by", default=""),
        moment("decided_at", nullable=True),
        words("reason", default=""),
        moment("used_at", nullable=True),
        moment("resumed_at", nullable=True),
        moment("announced_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_approval"),
        sa.UniqueConstraint("job_id", "asked_sha256", name="uq_approval_job_id_asked_sha256"),
    )
    op.create_index("ix_approval_agent_id", "approval", ["agent_id"])
    op.create_index("ix_approval_state_asked_at", "approval", ["state", "asked_at"])
    op.create_table(
        "approval_rule",
        number(),
        tenant_of("approval_rule"),
        reference("approval_rule", "agent_id", "agent", nullable=True),
        words("operation"),
        words("rule"),
        sa.PrimaryKeyConstraint("id", name="pk_approval_rule"),
        sa.UniqueConstraint(
            "tenant_id",
            "agent_id",
            "operation",
            name="uq_approval_rule_tenant_id_agent_id_operation",
            postgresql_nulls_not_distinct=True,
        ),
    )


def create_records() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        moment("at"),
        *(
            words(name)
            for name in (
                "tenant",
                "actor",
                "action",
                "object",
                "outcome",
                "syscall_id",
            )
        ),
        sa.Column("detail", JSONB(), nullable=False),
        words("previous_hash"),
        words("hash"),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_tenant_actor_seq", "audit", ["tenant", "actor", "seq"])
    op.create_table(
        "effect",
        words("syscall_id"),
        reference("effect", "agent_id", "agent"),
        words("kind"),
        moment("at", now=True),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("syscall_id", name="pk_effect"),
    )
    op.create_index("ix_effect_agent_id", "effect", ["agent_id"])
    op.create_index("ix_effect_at", "effect", ["at"])


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
