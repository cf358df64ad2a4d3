"""The schema: tables and their indexes as the metadata declares them, and who may do what.

What SQLAlchemy has no words for lies in `schema/`: roles, functions, privileges, policies, and the
guard of the audit log.

Nothing is released yet, so the tables are those of the metadata, not a copy of them. From the first
release on this migration is frozen (its tables written out), and each change is one of its own.

Phase: expand.
Locks: none; the tables are new.
Undo: drops everything: the history of syscalls, agents, grants, notes, files and the audit log. The
two roles and the extension stay: other databases of the server may use them.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.schema import CreateIndex, CreateTable

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.limits import DEFAULT_LIMITS
from aios_workers.modules.tables import FIRST_MODEL, metadata

revision = "0001"
down_revision = None

SCHEMA = Path(__file__).parents[1] / "schema"
ROLES = ("aios_agent", "aios_steward")
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
# The roles that the user is no member of, may not make itself a member of, and may not make.
LACKING_ROLES = """
    SELECT wanted.name
    FROM unnest(CAST(:roles AS text[])) WITH ORDINALITY AS wanted (name, place)
    JOIN pg_roles me ON me.rolname = current_user
    LEFT JOIN pg_roles there ON there.rolname = wanted.name
    WHERE NOT CASE WHEN there.oid IS NULL THEN me.rolcreaterole OR me.rolsuper
        ELSE pg_has_role(there.oid, 'SET') OR pg_has_role(there.oid, 'MEMBER WITH ADMIN OPTION') END
    ORDER BY wanted.place
"""
DROP_FUNCTIONS = r"""
DO $$
DECLARE
    made regprocedure;
BEGIN
    FOR made IN SELECT oid FROM pg_proc
        WHERE proname LIKE 'aios\_%' AND pronamespace = 'public'::regnamespace LOOP
        EXECUTE 'DROP FUNCTION ' || made;
    END LOOP;
END $$
"""


def upgrade() -> None:
    if not context.is_offline_mode():
        check_server()
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    execute_file("roles")
    execute_file("texts")
    for table in metadata.sorted_tables:
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index))
    # To compress the lines would cost more time than all else that is done with them.
    op.execute("ALTER TABLE journal_entry ALTER COLUMN lines SET STORAGE EXTERNAL")
    execute_file("functions")
    execute_file("privileges")
    execute_file("audit")
    execute_file("policies")
    execute_file("limits")
    execute_file("words")
    op.execute("SET LOCAL ROLE aios_steward")  # the owner sees and adds no row of this table
    for kind, limit in DEFAULT_LIMITS.items():
        if limit.most is not None:
            op.execute(f"INSERT INTO object_limit (kind, most) VALUES ('{kind}', {limit.most})")
    op.execute("RESET ROLE")
    number, name, dimension = FIRST_MODEL
    op.execute(
        "INSERT INTO embedding_model (id, name, dimension, active) OVERRIDING SYSTEM VALUE "
        f"VALUES ({number}, '{name}', {dimension}, true)"
    )
    op.execute(f"SELECT setval(pg_get_serial_sequence('embedding_model', 'id'), {number})")


def downgrade() -> None:
    op.execute("DROP POLICY agent_select ON blob")  # it reads another table, which goes first
    for table in reversed(metadata.sorted_tables):
        op.drop_table(table.name)
    op.execute(DROP_FUNCTIONS)


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
    roles = connection.execute(sa.text(LACKING_ROLES), {"roles": [*ROLES]}).scalars()
    if lacking := ", ".join(roles):
        raise InvalidConfig(
            f"the database's user may neither make nor become the roles {lacking}",
            field="AIOS_DATABASE_URL",
            remedy="as a superuser: ALTER ROLE <user> CREATEROLE; where the roles are there "
            f"already: GRANT {lacking} TO <user> WITH ADMIN TRUE, SET TRUE",
        )


def execute_file(name: str) -> None:
    op.execute((SCHEMA / f"{name}.sql").read_text())
