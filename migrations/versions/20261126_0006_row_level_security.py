"""Row-level security: what an agent's session sees and changes, decided by Postgres itself.

Deny by default for `aios_agent`; all for `aios_steward`. What an agent may reach is asked once per
query, by functions of the steward's that return arrays; only writes ask for each row.

Phase: contract. Sessions that neither are the steward nor name an agent see nothing from here on.
Locks: each table for a moment; no row is read.
Undo: everybody who may become `aios_agent` sees all rows again.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

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

# Of the session. Without the setting nobody asks: null, and no row is anybody's.
IDENTITY = """
CREATE FUNCTION aios_agent_id() RETURNS bigint STABLE PARALLEL SAFE LANGUAGE sql
    AS $$ SELECT nullif(current_setting('aios.agent_id', true), '')::bigint $$;
CREATE FUNCTION aios_tenant_id() RETURNS bigint STABLE PARALLEL SAFE LANGUAGE sql
    AS $$ SELECT nullif(current_setting('aios.tenant_id', true), '')::bigint $$;
-- `see` is what a SELECT needs: the verb of the session, or read or search where it names none.
CREATE FUNCTION aios_verbs(verb text) RETURNS text[] STABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT CASE WHEN verb <> 'see' THEN ARRAY[verb, 'administer']
        WHEN coalesce(current_setting('aios.verb', true), '') <> ''
            THEN ARRAY[current_setting('aios.verb', true), 'administer']
        ELSE ARRAY['read', 'search', 'administer'] END
$$;
"""

# name(arguments): what it returns, how it behaves, its one statement. All look with the steward's
# eyes. STABLE ones are asked once per query; VOLATILE ones see what the same statement has written.
READS = {
    "aios_groups()": (
        "bigint[]",
        """
        SELECT coalesce(array_agg(m.group_id), '{}') FROM membership m
        JOIN privilege_group p ON p.id = m.group_id
        WHERE m.agent_id = aios_agent_id() AND p.tenant_id = aios_tenant_id()""",
    ),
    "aios_granted(kind text, verb text)": (
        "text[]",
        """
        SELECT coalesce(array_agg(DISTINCT g.object_id), '{}') FROM access_grant g
        WHERE g.tenant_id = aios_tenant_id() AND g.object_kind = kind
          AND (g.expires_at IS NULL OR g.expires_at > now()) AND g.verbs && aios_verbs(verb)
          AND (g.agent_id = aios_agent_id() OR g.group_id = ANY (aios_groups()))""",
    ),
    "aios_blocks(verb text)": ("bigint[]", "SELECT aios_granted('block', verb)::bigint[]"),
    "aios_notes(verb text)": ("text[]", "SELECT aios_granted('note', verb)"),
    "aios_tops(verb text)": ("bigint[]", "SELECT aios_granted('directory', verb)::bigint[]"),
    "aios_directories(verb text)": (
        "bigint[]",
        """
        SELECT coalesce(array_agg(DISTINCT d.id), '{}') FROM directory t
        JOIN directory d ON d.owner_id = t.owner_id AND t.id = ANY (d.ancestors)
        WHERE t.id = ANY (aios_tops(verb))""",
    ),
    "aios_files(verb text)": (
        "bigint[]",
        """
        SELECT coalesce(array_agg(f.id), '{}') FROM file f
        WHERE f.id = ANY (aios_granted('file', verb)::bigint[])
           OR f.directory_id = ANY (aios_directories(verb))""",
    ),
    "aios_file_owners(verb text)": (
        "bigint[]",
        """
        SELECT coalesce(array_agg(DISTINCT o.owner_id), '{}') FROM (
            SELECT owner_id FROM file WHERE id = ANY (aios_granted('file', verb)::bigint[])
            UNION ALL SELECT owner_id FROM directory WHERE id = ANY (aios_tops(verb))) o""",
    ),
    "aios_is_administrator()": (
        "boolean",
        """
        SELECT coalesce((SELECT administrator FROM agent
                         WHERE id = aios_agent_id() AND tenant_id = aios_tenant_id()), false)""",
    ),
    "aios_agent_name()": (
        "text",
        """
        SELECT name FROM agent WHERE id = aios_agent_id() AND tenant_id = aios_tenant_id()""",
    ),
    "aios_tenant_name()": ("text", "SELECT name FROM tenant WHERE id = aios_tenant_id()"),
}

CHECKS = {
    # Whether all these directories are this agent's.
    "aios_all_of(owner bigint, ids bigint[])": """
        SELECT count(*) = cardinality(ids) FROM directory
        WHERE id = ANY (ids) AND owner_id = owner""",
    "aios_may_write_file(file_id bigint, owner bigint)": """
        SELECT EXISTS (SELECT FROM file f JOIN directory d ON d.id = f.directory_id
            WHERE f.id = file_id AND f.owner_id = owner AND (owner = aios_agent_id()
                OR f.id = ANY (aios_granted('file', 'write')::bigint[])
                OR d.ancestors && aios_tops('write')))""",
    "aios_may_write_note(note_id text, owner bigint)": """
        SELECT EXISTS (SELECT FROM note n WHERE n.id = note_id AND n.owner_id = owner
            AND (owner = aios_agent_id() OR owner = ANY (aios_blocks('write'))
                 OR n.id = ANY (aios_notes('write'))))""",
    "aios_is_loose(owner bigint, digest text)": """
        SELECT NOT EXISTS (SELECT FROM file_version v
                           WHERE v.owner_id = owner AND v.sha256 = digest)""",
    "aios_is_group_administrator(in_group bigint)": """
        SELECT EXISTS (SELECT FROM privilege_group p
            WHERE p.id = in_group AND p.tenant_id = aios_tenant_id()
              AND (aios_is_administrator() OR EXISTS (SELECT FROM membership m
                  WHERE m.group_id = p.id AND m.agent_id = aios_agent_id() AND m.role = 'admin')))
        """,
    # Who has made a group is its first member: nobody else is, and nothing is granted to it.
    "aios_is_new_group(in_group bigint)": """
        SELECT EXISTS (SELECT FROM privilege_group
                       WHERE id = in_group AND tenant_id = aios_tenant_id())
           AND NOT EXISTS (SELECT FROM membership WHERE group_id = in_group)
           AND NOT EXISTS (SELECT FROM access_grant WHERE group_id = in_group)""",
    "aios_in_tenant(agent bigint, in_group bigint)": """
        SELECT coalesce((SELECT tenant_id FROM agent a WHERE a.id = agent),
                        (SELECT tenant_id FROM privilege_group p WHERE p.id = in_group))
               = aios_tenant_id()""",
    "aios_owns(owner bigint, kind text, object_id text)": """
        SELECT CASE kind WHEN 'block' THEN owner::text = object_id
            WHEN 'note' THEN EXISTS (SELECT FROM note n
                                     WHERE n.id = object_id AND n.owner_id = owner)
            WHEN 'file' THEN EXISTS (SELECT FROM file f
                                     WHERE f.id = object_id::bigint AND f.owner_id = owner)
            WHEN 'directory' THEN EXISTS (SELECT FROM directory d
                                     WHERE d.id = object_id::bigint AND d.owner_id = owner)
            ELSE false END""",
    "aios_holds(kind text, object_id text, verb text)": """
        SELECT CASE kind WHEN 'block' THEN object_id = ANY (aios_granted('block', verb))
            WHEN 'note' THEN object_id = ANY (aios_granted('note', verb)) OR EXISTS (
                SELECT FROM note n WHERE n.id = object_id AND n.owner_id = ANY (aios_blocks(verb)))
            WHEN 'file' THEN object_id = ANY (aios_granted('file', verb)) OR EXISTS (
                SELECT FROM file f JOIN directory d ON d.id = f.directory_id
                WHERE f.id = object_id::bigint AND d.ancestors && aios_tops(verb))
            WHEN 'directory' THEN EXISTS (SELECT FROM directory d
                WHERE d.id = object_id::bigint AND d.ancestors && aios_tops(verb))
            ELSE false END""",
    # A grant is given by the owner, or by who may share: then nothing that it may not do itself.
    "aios_may_grant(owner bigint, kind text, object_id text, verbs text[])": """
        SELECT aios_owns(owner, kind, object_id) AND (owner = aios_agent_id()
            OR aios_holds(kind, object_id, 'share')
            AND NOT EXISTS (SELECT FROM unnest(verbs) v
                            WHERE NOT aios_holds(kind, object_id, v)))""",
}

READ_FUNCTION = """
CREATE FUNCTION {signature} RETURNS {returns} STABLE SECURITY DEFINER LANGUAGE sql
    SET search_path = public, pg_temp AS $${body}$$
"""
CHECK_FUNCTION = """
CREATE FUNCTION {signature} RETURNS boolean VOLATILE SECURITY DEFINER LANGUAGE plpgsql
    SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN ({body}); END $$
"""

# Postgres evaluates an uncorrelated sub-select once per query.
ME = "(SELECT aios_agent_id())"
TENANT = "(SELECT aios_tenant_id())"
OWN = f"owner_id = {ME}"
ADMINISTRATOR = "(SELECT aios_is_administrator())"


def among(column: str, function: str, verb: str, kind: str = "bigint") -> str:
    return f"{column} = ANY ((SELECT {function}('{verb}'))::{kind}[])"


def note_rule(verb: str, column: str = "id") -> str:
    blocks, notes = (
        among("owner_id", "aios_blocks", verb),
        among(column, "aios_notes", verb, "text"),
    )
    return f"{OWN} OR {blocks} OR {notes}"


def directory_rule(verb: str) -> str:
    return f"{OWN} OR ancestors && (SELECT aios_tops('{verb}'))"


def file_rule(verb: str) -> str:
    return (
        f"{OWN} OR {among('directory_id', 'aios_directories', verb)} "
        f"OR id = ANY ((SELECT aios_granted('file', '{verb}'))::bigint[])"
    )


def part_rule(verb: str) -> str:
    return f"{OWN} OR {among('file_id', 'aios_files', verb)}"


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
TAKEN = f"""{OWN} OR granted_by = {ME}
    OR aios_holds(object_kind, object_id, 'administer')"""
SEEN_GRANT = f"""{TAKEN} OR agent_id = {ME} OR group_id = ANY ((SELECT aios_groups())::bigint[])
    OR aios_holds(object_kind, object_id, 'share')"""
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
}

# What an agent's session may not even try. Owners and tenants of rows never change.
PRIVILEGES = """
REVOKE INSERT, UPDATE, DELETE ON tenant, agent, agent_token, embedding_model FROM aios_agent;
REVOKE UPDATE ON privilege_group, access_grant, effect, blob, audit, share_link, note, directory,
    file, membership FROM aios_agent;
REVOKE DELETE ON audit, effect, approval FROM aios_agent;
REVOKE UPDATE, DELETE ON audit FROM aios_steward;
GRANT UPDATE (storage_used_bytes) ON agent TO aios_agent;
GRANT UPDATE (role) ON membership TO aios_agent;
GRANT UPDATE (program, content, keywords, tags, category, context, links, metadata, version,
    updated_at, expires_at, words, model_id, vector) ON note TO aios_agent;
GRANT UPDATE (ancestors, path) ON directory TO aios_agent;
GRANT UPDATE (directory_id, path, version, size_bytes, sha256, updated_at, locked_by, locked_until)
    ON file TO aios_agent;
"""


def upgrade() -> None:
    for statement in IDENTITY.split(";\n"):
        if statement.strip():
            op.execute(statement)
    make_functions()
    op.execute(PRIVILEGES)
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY steward ON {table} TO aios_steward USING (true)")
        for command, rule in RULES[table].items():
            if command != "update_check":
                make_policy(table, command, rule)


def make_functions() -> None:
    """Make the functions, and make them the steward's: it sees all rows."""
    op.execute("SET LOCAL check_function_bodies = off")
    op.execute("GRANT CREATE ON SCHEMA public TO aios_steward")
    for signature, (returns, body) in READS.items():
        op.execute(READ_FUNCTION.format(signature=signature, returns=returns, body=body))
        op.execute(f"ALTER FUNCTION {signature} OWNER TO aios_steward")
    for signature, body in CHECKS.items():
        op.execute(CHECK_FUNCTION.format(signature=signature, body=body))
        op.execute(f"ALTER FUNCTION {signature} OWNER TO aios_steward")
    op.execute("REVOKE CREATE ON SCHEMA public FROM aios_steward")


def make_policy(table: str, command: str, rule: str) -> None:
    after = RULES[table].get("update_check", rule) if command == "update" else rule
    parts = [] if command == "insert" else [f"USING ({rule})"]
    parts += [f"WITH CHECK ({after})"] if command in ("insert", "update") else []
    op.execute(
        f"CREATE POLICY agent_{command} ON {table} FOR {command.upper()} TO aios_agent "
        + " ".join(parts)
    )


def downgrade() -> None:
    for table in TABLES:
        for command in RULES[table]:
            if command != "update_check":
                op.execute(f"DROP POLICY agent_{command} ON {table}")
        op.execute(f"DROP POLICY steward ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO aios_agent, aios_steward")
    op.execute("GRANT INSERT, UPDATE, DELETE ON embedding_model TO aios_agent")
    for signature in [*CHECKS, *READS][::-1]:
        op.execute(f"DROP FUNCTION {signature}")
    for name in ("aios_verbs(text)", "aios_tenant_id()", "aios_agent_id()"):
        op.execute(f"DROP FUNCTION {name}")
