"""The schema: tables and their indexes as the metadata declares them, and who may do what.

What SQLAlchemy has no words for lies in `schema/`: roles, functions, privileges, the guard of the
audit log. Row-level security decides what an agent's session sees and changes: deny by default for
`aios_agent`, all for `aios_steward`.

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
from aios_workers.modules.columns import FIRST_MODEL
from aios_workers.modules.tables import metadata

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

# Postgres evaluates an uncorrelated sub-select once per query.
ME = "(SELECT aios_agent_id())"
TENANT = "(SELECT aios_tenant_id())"
OWN = f"owner_id = {ME}"
ADMINISTRATOR = "(SELECT aios_is_administrator())"


def among(column: str, function: str, verb: str, kind: str = "bigint") -> str:
    return f"{column} = ANY ((SELECT {function}('{verb}'))::{kind}[])"


def note_rule(verb: str, column: str = "id") -> str:
    blocks = among("owner_id", "aios_blocks", verb)
    return f"{OWN} OR {blocks} OR {among(column, 'aios_notes', verb, 'text')}"


def directory_rule(verb: str) -> str:
    return f"{OWN} OR ancestors && (SELECT aios_tops('{verb}'))"


def file_rule(verb: str) -> str:
    return (
        f"{OWN} OR {among('directory_id', 'aios_directories', verb)} "
        f"OR id = ANY ((SELECT aios_granted('file', '{verb}'))::bigint[])"
    )


def part_rule(verb: str) -> str:
    return f"{OWN} OR {among('file_id', 'aios_files', verb)}"


def held(verb: str) -> str:
    """Return whether a grant's object is held with a verb, as it was when the statement began.

    Asked row by row the right to take grants back would end in the middle, with one's own row.
    """
    return f"""CASE object_kind
        WHEN 'block' THEN object_id = ANY ((SELECT aios_granted('block', '{verb}'))::text[])
        WHEN 'note' THEN {among("object_id", "aios_notes", verb, "text")}
            OR {among("owner_id", "aios_blocks", verb)}
        WHEN 'file' THEN {among("object_id::bigint", "aios_files", verb)}
        WHEN 'directory' THEN {among("object_id::bigint", "aios_directories", verb)}
        ELSE false END"""


BLOBS_OF_OTHERS = among("owner_id", "aios_file_owners", "write")
SEEN_BLOB = f"""{OWN} OR EXISTS (SELECT FROM file_version v
    WHERE v.owner_id = blob.owner_id AND v.sha256 = blob.sha256)
    OR ({BLOBS_OF_OTHERS} AND aios_is_loose(owner_id, sha256))"""
FILE_PART = "aios_may_write_file(file_id, owner_id)"
NOTE_PART = "aios_may_write_note(note_id, owner_id)"
BY_ME = f"by_agent_id = {ME}"
IN_TENANT = f"tenant_id = {TENANT}"
NEW_NOTE = f"{IN_TENANT} AND ({OWN} OR {among('owner_id', 'aios_blocks', 'write')})"
# A new directory does not end its own way down yet.
PLACED = f"{IN_TENANT} AND aios_all_of(owner_id, ancestors) AND ({directory_rule('write')})"
FILED = f"{IN_TENANT} AND aios_all_of(owner_id, ARRAY[directory_id]) AND ({file_rule('write')})"
MAY_GRANT = "aios_may_grant(owner_id, object_kind, object_id, verbs)"
GIVEN = f"""{IN_TENANT} AND granted_by = {ME} AND aios_in_tenant(agent_id, group_id)
    AND {MAY_GRANT}"""
TAKEN = f"{OWN} OR granted_by = {ME} OR {held('administer')}"
SEEN_GRANT = f"""{OWN} OR granted_by = {ME}
    OR agent_id = {ME} OR group_id = ANY ((SELECT aios_groups())::bigint[])
    OR {held("administer")} OR {held("share")}"""
GROUP_ADMINISTRATOR = "aios_is_group_administrator(group_id)"
JOINING = f"""aios_in_tenant(agent_id, NULL) AND ({GROUP_ADMINISTRATOR}
    OR (agent_id = {ME} AND aios_is_new_group(group_id)))"""
MINE = f"agent_id = {ME}"
NOT_MINE = f"agent_id <> {ME} AND {IN_TENANT} AND {ADMINISTRATOR}"

# Table: what a SELECT, an INSERT, an UPDATE (before and after) and a DELETE need. Left out: nothing
# is let through.
RULES: dict[str, dict[str, str]] = {
    "tenant": {"select": f"id = {TENANT}"},
    "agent": {
        "select": IN_TENANT,
        "update": f"{IN_TENANT} AND (id = {ME} OR {among('id', 'aios_file_owners', 'write')})",
    },
    "agent_token": {},
    "privilege_group": {
        "select": IN_TENANT,
        "insert": IN_TENANT,
        "delete": "aios_is_group_administrator(id)",
    },
    "membership": {
        "select": "aios_in_tenant(NULL, group_id)",
        "insert": JOINING,
        "update": GROUP_ADMINISTRATOR,
        "delete": f"{MINE} OR {GROUP_ADMINISTRATOR}",
    },
    "access_grant": {"select": SEEN_GRANT, "insert": GIVEN, "delete": TAKEN},
    "approval": {
        "select": f"{MINE} OR ({IN_TENANT} AND {ADMINISTRATOR})",
        "insert": f"{MINE} AND {IN_TENANT} AND state = 'waiting'",
        # Its own is used up, never decided; another's is decided by an administrator.
        "update": f"({MINE} AND state = 'approved') OR ({NOT_MINE})",
        "update_check": f"({MINE} AND state IN ('used', 'expired')) OR ({NOT_MINE})",
    },
    "approval_rule": {
        "select": IN_TENANT,
        **dict.fromkeys(("insert", "update", "delete"), f"{IN_TENANT} AND {ADMINISTRATOR}"),
    },
    "audit": {
        "select": f"tenant = (SELECT aios_tenant_name()) "
        f"AND (actor = (SELECT aios_agent_name()) OR {ADMINISTRATOR})",
        "insert": "tenant = (SELECT aios_tenant_name()) AND actor = (SELECT aios_agent_name())",
    },
    "effect": {"select": MINE, "insert": MINE},
    "memory_block": {
        "select": f"{OWN} OR {among('owner_id', 'aios_blocks', 'see')}",
        **dict.fromkeys(
            ("insert", "update", "delete"),
            f"{OWN} OR {among('owner_id', 'aios_blocks', 'administer')}",
        ),
    },
    "note": {
        "select": note_rule("see"),
        "insert": NEW_NOTE,
        "update": note_rule("write"),
        "delete": note_rule("write"),
    },
    "note_version": {
        "select": note_rule("see", "note_id"),
        "insert": f"{BY_ME} AND {NOTE_PART}",
        "update": NOTE_PART,
        "delete": note_rule("write", "note_id"),
    },
    "directory": {
        "select": directory_rule("see"),
        "insert": PLACED,
        "update": directory_rule("write"),
        "update_check": PLACED,
        "delete": directory_rule("write"),
    },
    "file": {
        "select": file_rule("see"),
        "insert": FILED,
        "update": file_rule("write"),
        "update_check": FILED,
        "delete": file_rule("write"),
    },
    "blob": {
        "select": SEEN_BLOB,
        "insert": f"{OWN} OR {BLOBS_OF_OTHERS}",
        "delete": f"{OWN} OR ({BLOBS_OF_OTHERS} AND aios_is_loose(owner_id, sha256))",
    },
    "file_version": {
        "select": part_rule("see"),
        "insert": f"{BY_ME} AND {FILE_PART}",
        "update": FILE_PART,
        "delete": part_rule("write"),
    },
    "file_chunk": {
        "select": part_rule("see"),
        "insert": FILE_PART,
        "update": FILE_PART,
        "delete": part_rule("write"),
    },
    "mount": dict.fromkeys(("select", "insert", "update", "delete"), OWN),
    "share_link": {
        "select": f"{OWN} OR {among('file_id', 'aios_files', 'share')}",
        "insert": f"aios_owns(owner_id, 'file', file_id::text) "
        f"AND ({OWN} OR {among('file_id', 'aios_files', 'share')})",
        "delete": f"{OWN} OR {among('file_id', 'aios_files', 'share')}",
    },
    "mount_file": {"select": OWN},
    "mount_chunk": {"select": OWN},
}


def upgrade() -> None:
    if not context.is_offline_mode():
        check_server()
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    execute_file("roles")
    for table in metadata.sorted_tables:
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index))
    # To compress the lines would cost more time than all else that is done with them.
    op.execute("ALTER TABLE journal_entry ALTER COLUMN lines SET STORAGE EXTERNAL")
    execute_file("functions")
    execute_file("privileges")
    execute_file("audit")
    for table, rules in RULES.items():
        guard_rows(table, rules)
    add_first_model(*FIRST_MODEL)


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


def guard_rows(table: str, rules: dict[str, str]) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY steward ON {table} TO aios_steward USING (true)")
    for command in ("select", "insert", "update", "delete"):
        if rule := rules.get(command):
            before = "" if command == "insert" else f" USING ({rule})"
            after = rules.get("update_check", rule) if command == "update" else rule
            check = f" WITH CHECK ({after})" if command in ("insert", "update") else ""
            op.execute(
                f"CREATE POLICY agent_{command} ON {table} FOR {command.upper()} TO aios_agent"
                f"{before}{check}"
            )


def add_first_model(number: int, name: str, dimension: int) -> None:
    op.execute(
        "INSERT INTO embedding_model (id, name, dimension, active) OVERRIDING SYSTEM VALUE "
        f"VALUES ({number}, '{name}', {dimension}, true)"
    )
    op.execute(f"SELECT setval(pg_get_serial_sequence('embedding_model', 'id'), {number})")
