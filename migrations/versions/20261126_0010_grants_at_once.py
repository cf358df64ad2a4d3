"""Grants are taken back by what held when the statement began, whichever row goes first.

Who administers an object by a grant takes back all grants on it, its own included. Asked row by
row, its right ended in the middle, with its own row.

Phase: contract. The same rows are let through as before, and those behind one's own as well.
Locks: `access_grant` for a moment; no row is read.
Undo: the rules of 0006.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

ME = "(SELECT aios_agent_id())"


def held(verb: str) -> str:
    """Return whether a grant's object is held with a verb; Postgres asks once per statement."""
    return f"""CASE object_kind
        WHEN 'block' THEN object_id = ANY ((SELECT aios_granted('block', '{verb}'))::text[])
        WHEN 'note' THEN object_id = ANY ((SELECT aios_notes('{verb}'))::text[])
            OR owner_id = ANY ((SELECT aios_blocks('{verb}'))::bigint[])
        WHEN 'file' THEN object_id::bigint = ANY ((SELECT aios_files('{verb}'))::bigint[])
        WHEN 'directory'
            THEN object_id::bigint = ANY ((SELECT aios_directories('{verb}'))::bigint[])
        ELSE false END"""


def by_row(verb: str) -> str:
    """Return the same, asked for each row."""
    return f"aios_holds(object_kind, object_id, '{verb}')"


def upgrade() -> None:
    set_rules(held("administer"), held("share"))


def downgrade() -> None:
    set_rules(by_row("administer"), by_row("share"))


def set_rules(administers: str, shares: str) -> None:
    given = f"owner_id = {ME} OR granted_by = {ME}"
    held_by_me = f"agent_id = {ME} OR group_id = ANY ((SELECT aios_groups())::bigint[])"
    op.execute(f"ALTER POLICY agent_delete ON access_grant USING ({given} OR {administers})")
    op.execute(
        "ALTER POLICY agent_select ON access_grant "
        f"USING ({given} OR {held_by_me} OR {administers} OR {shares})"
    )
