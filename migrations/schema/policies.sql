-- Row-level security: what an agent's session sees and changes, decided by Postgres itself. Deny by
-- default for `aios_agent`: what has no policy here is not let through. All for `aios_steward`.
--
-- Postgres evaluates an uncorrelated sub-select once per query: what an agent may reach is asked
-- once, only writes ask for each row.

DO $$
DECLARE
    guarded text;
BEGIN
    FOREACH guarded IN ARRAY ARRAY[
        'tenant', 'agent', 'agent_token', 'privilege_group', 'membership',
        'access_grant', 'approval', 'approval_rule', 'audit', 'effect',
        'memory_block', 'note', 'note_version', 'directory', 'file',
        'blob', 'file_version', 'file_chunk', 'mount', 'share_link',
        'mount_file', 'mount_chunk', 'kernel_secret'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', guarded);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', guarded);
        EXECUTE format('CREATE POLICY steward ON %I TO aios_steward USING (true)', guarded);
    END LOOP;
END $$;

CREATE POLICY agent_select ON tenant FOR SELECT TO aios_agent
    USING (id = (SELECT aios_tenant_id()));

CREATE POLICY agent_select ON agent FOR SELECT TO aios_agent
    USING (tenant_id = (SELECT aios_tenant_id()));
CREATE POLICY agent_update ON agent FOR UPDATE TO aios_agent
    USING (
        tenant_id = (SELECT aios_tenant_id())
        AND (
            id = (SELECT aios_agent_id())
            OR id = ANY ((SELECT aios_file_owners('write'))::bigint[])
        )
    )
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND (
            id = (SELECT aios_agent_id())
            OR id = ANY ((SELECT aios_file_owners('write'))::bigint[])
        )
    );

CREATE POLICY agent_select ON privilege_group FOR SELECT TO aios_agent
    USING (tenant_id = (SELECT aios_tenant_id()));
CREATE POLICY agent_insert ON privilege_group FOR INSERT TO aios_agent
    WITH CHECK (tenant_id = (SELECT aios_tenant_id()));
CREATE POLICY agent_delete ON privilege_group FOR DELETE TO aios_agent
    USING (aios_is_group_administrator(id));

CREATE POLICY agent_select ON membership FOR SELECT TO aios_agent
    USING (aios_in_tenant(NULL, group_id));
CREATE POLICY agent_insert ON membership FOR INSERT TO aios_agent
    WITH CHECK (
        aios_in_tenant(agent_id, NULL)
        AND (
            aios_is_group_administrator(group_id)
            OR (agent_id = (SELECT aios_agent_id()) AND aios_is_new_group(group_id))
        )
    );
CREATE POLICY agent_update ON membership FOR UPDATE TO aios_agent
    USING (aios_is_group_administrator(group_id))
    WITH CHECK (aios_is_group_administrator(group_id));
CREATE POLICY agent_delete ON membership FOR DELETE TO aios_agent
    USING (agent_id = (SELECT aios_agent_id()) OR aios_is_group_administrator(group_id));

-- What is held is asked as it was when the statement began: asked row by row, the right to take
-- grants back would end in the middle, with one's own row.
CREATE POLICY agent_select ON access_grant FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR granted_by = (SELECT aios_agent_id())
        OR agent_id = (SELECT aios_agent_id())
        OR group_id = ANY ((SELECT aios_groups())::bigint[])
        OR CASE object_kind
            WHEN 'block' THEN object_id = ANY ((SELECT aios_granted('block', 'administer'))::text[])
            WHEN 'note' THEN object_id = ANY ((SELECT aios_notes('administer'))::text[])
                OR owner_id = ANY ((SELECT aios_blocks('administer'))::bigint[])
            WHEN 'file' THEN object_id::bigint = ANY ((SELECT aios_files('administer'))::bigint[])
            WHEN 'directory'
                THEN object_id::bigint = ANY ((SELECT aios_directories('administer'))::bigint[])
            ELSE false END
        OR CASE object_kind
            WHEN 'block' THEN object_id = ANY ((SELECT aios_granted('block', 'share'))::text[])
            WHEN 'note' THEN object_id = ANY ((SELECT aios_notes('share'))::text[])
                OR owner_id = ANY ((SELECT aios_blocks('share'))::bigint[])
            WHEN 'file' THEN object_id::bigint = ANY ((SELECT aios_files('share'))::bigint[])
            WHEN 'directory'
                THEN object_id::bigint = ANY ((SELECT aios_directories('share'))::bigint[])
            ELSE false END
    );
CREATE POLICY agent_insert ON access_grant FOR INSERT TO aios_agent
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND granted_by = (SELECT aios_agent_id())
        AND aios_in_tenant(agent_id, group_id)
        AND aios_may_grant(owner_id, object_kind, object_id, verbs)
    );
CREATE POLICY agent_delete ON access_grant FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR granted_by = (SELECT aios_agent_id())
        OR CASE object_kind
            WHEN 'block' THEN object_id = ANY ((SELECT aios_granted('block', 'administer'))::text[])
            WHEN 'note' THEN object_id = ANY ((SELECT aios_notes('administer'))::text[])
                OR owner_id = ANY ((SELECT aios_blocks('administer'))::bigint[])
            WHEN 'file' THEN object_id::bigint = ANY ((SELECT aios_files('administer'))::bigint[])
            WHEN 'directory'
                THEN object_id::bigint = ANY ((SELECT aios_directories('administer'))::bigint[])
            ELSE false END
    );

CREATE POLICY agent_select ON approval FOR SELECT TO aios_agent
    USING (
        agent_id = (SELECT aios_agent_id())
        OR (tenant_id = (SELECT aios_tenant_id()) AND (SELECT aios_oversees()))
    );
CREATE POLICY agent_insert ON approval FOR INSERT TO aios_agent
    WITH CHECK (
        agent_id = (SELECT aios_agent_id())
        AND tenant_id = (SELECT aios_tenant_id())
        AND state = 'waiting'
    );
-- Its own is used up, never decided; another's is decided by who may decide for that one.
CREATE POLICY agent_update ON approval FOR UPDATE TO aios_agent
    USING (
        (agent_id = (SELECT aios_agent_id()) AND state = 'approved')
        OR (
            tenant_id = (SELECT aios_tenant_id())
            AND aios_may_decide((SELECT aios_agent_id()), agent_id)
        )
    )
    WITH CHECK (
        (agent_id = (SELECT aios_agent_id()) AND state IN ('used', 'expired'))
        OR (
            tenant_id = (SELECT aios_tenant_id())
            AND decided_by_agent = (SELECT aios_agent_id())
            AND aios_may_decide((SELECT aios_agent_id()), agent_id)
        )
    );

CREATE POLICY agent_select ON approval_rule FOR SELECT TO aios_agent
    USING (tenant_id = (SELECT aios_tenant_id()));
CREATE POLICY agent_insert ON approval_rule FOR INSERT TO aios_agent
    WITH CHECK (tenant_id = (SELECT aios_tenant_id()) AND (SELECT aios_is_administrator()));
CREATE POLICY agent_update ON approval_rule FOR UPDATE TO aios_agent
    USING (tenant_id = (SELECT aios_tenant_id()) AND (SELECT aios_is_administrator()))
    WITH CHECK (tenant_id = (SELECT aios_tenant_id()) AND (SELECT aios_is_administrator()));
CREATE POLICY agent_delete ON approval_rule FOR DELETE TO aios_agent
    USING (tenant_id = (SELECT aios_tenant_id()) AND (SELECT aios_is_administrator()));

CREATE POLICY agent_select ON audit FOR SELECT TO aios_agent
    USING (
        tenant = (SELECT aios_tenant_name())
        AND (actor = (SELECT aios_agent_name()) OR (SELECT aios_is_administrator()))
    );

CREATE POLICY agent_select ON effect FOR SELECT TO aios_agent
    USING (agent_id = (SELECT aios_agent_id()));
CREATE POLICY agent_insert ON effect FOR INSERT TO aios_agent
    WITH CHECK (agent_id = (SELECT aios_agent_id()));

CREATE POLICY agent_select ON memory_block FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('see'))::bigint[])
    );
CREATE POLICY agent_insert ON memory_block FOR INSERT TO aios_agent
    WITH CHECK (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('administer'))::bigint[])
    );
CREATE POLICY agent_update ON memory_block FOR UPDATE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('administer'))::bigint[])
    )
    WITH CHECK (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('administer'))::bigint[])
    );
CREATE POLICY agent_delete ON memory_block FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('administer'))::bigint[])
    );

CREATE POLICY agent_select ON note FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('see'))::bigint[])
        OR id = ANY ((SELECT aios_notes('see'))::text[])
    );
CREATE POLICY agent_insert ON note FOR INSERT TO aios_agent
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND (
            owner_id = (SELECT aios_agent_id())
            OR owner_id = ANY ((SELECT aios_blocks('write'))::bigint[])
        )
    );
CREATE POLICY agent_update ON note FOR UPDATE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('write'))::bigint[])
        OR id = ANY ((SELECT aios_notes('write'))::text[])
    )
    WITH CHECK (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('write'))::bigint[])
        OR id = ANY ((SELECT aios_notes('write'))::text[])
    );
CREATE POLICY agent_delete ON note FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('write'))::bigint[])
        OR id = ANY ((SELECT aios_notes('write'))::text[])
    );

CREATE POLICY agent_select ON note_version FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('see'))::bigint[])
        OR note_id = ANY ((SELECT aios_notes('see'))::text[])
    );
CREATE POLICY agent_insert ON note_version FOR INSERT TO aios_agent
    WITH CHECK (by_agent_id = (SELECT aios_agent_id()) AND aios_may_write_note(note_id, owner_id));
CREATE POLICY agent_update ON note_version FOR UPDATE TO aios_agent
    USING (aios_may_write_note(note_id, owner_id))
    WITH CHECK (aios_may_write_note(note_id, owner_id));
CREATE POLICY agent_delete ON note_version FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_blocks('write'))::bigint[])
        OR note_id = ANY ((SELECT aios_notes('write'))::text[])
    );

CREATE POLICY agent_select ON directory FOR SELECT TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()) OR ancestors && (SELECT aios_tops('see')));
-- A new directory does not end its own way down yet.
CREATE POLICY agent_insert ON directory FOR INSERT TO aios_agent
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND aios_all_of(owner_id, ancestors)
        AND (owner_id = (SELECT aios_agent_id()) OR ancestors && (SELECT aios_tops('write')))
    );
CREATE POLICY agent_update ON directory FOR UPDATE TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()) OR ancestors && (SELECT aios_tops('write')))
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND aios_all_of(owner_id, ancestors)
        AND (owner_id = (SELECT aios_agent_id()) OR ancestors && (SELECT aios_tops('write')))
    );
CREATE POLICY agent_delete ON directory FOR DELETE TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()) OR ancestors && (SELECT aios_tops('write')));

CREATE POLICY agent_select ON file FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR directory_id = ANY ((SELECT aios_directories('see'))::bigint[])
        OR id = ANY ((SELECT aios_granted('file', 'see'))::bigint[])
    );
CREATE POLICY agent_insert ON file FOR INSERT TO aios_agent
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND aios_all_of(owner_id, ARRAY[directory_id])
        AND (
            owner_id = (SELECT aios_agent_id())
            OR directory_id = ANY ((SELECT aios_directories('write'))::bigint[])
            OR id = ANY ((SELECT aios_granted('file', 'write'))::bigint[])
        )
    );
CREATE POLICY agent_update ON file FOR UPDATE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR directory_id = ANY ((SELECT aios_directories('write'))::bigint[])
        OR id = ANY ((SELECT aios_granted('file', 'write'))::bigint[])
    )
    WITH CHECK (
        tenant_id = (SELECT aios_tenant_id())
        AND aios_all_of(owner_id, ARRAY[directory_id])
        AND (
            owner_id = (SELECT aios_agent_id())
            OR directory_id = ANY ((SELECT aios_directories('write'))::bigint[])
            OR id = ANY ((SELECT aios_granted('file', 'write'))::bigint[])
        )
    );
CREATE POLICY agent_delete ON file FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR directory_id = ANY ((SELECT aios_directories('write'))::bigint[])
        OR id = ANY ((SELECT aios_granted('file', 'write'))::bigint[])
    );

CREATE POLICY agent_select ON blob FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR EXISTS (
            SELECT FROM file_version v
            WHERE v.owner_id = blob.owner_id AND v.sha256 = blob.sha256
        )
        OR (
            owner_id = ANY ((SELECT aios_file_owners('write'))::bigint[])
            AND aios_is_loose(owner_id, sha256)
        )
    );
CREATE POLICY agent_insert ON blob FOR INSERT TO aios_agent
    WITH CHECK (
        owner_id = (SELECT aios_agent_id())
        OR owner_id = ANY ((SELECT aios_file_owners('write'))::bigint[])
    );
CREATE POLICY agent_delete ON blob FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR (
            owner_id = ANY ((SELECT aios_file_owners('write'))::bigint[])
            AND aios_is_loose(owner_id, sha256)
        )
    );

CREATE POLICY agent_select ON file_version FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR file_id = ANY ((SELECT aios_files('see'))::bigint[])
    );
CREATE POLICY agent_insert ON file_version FOR INSERT TO aios_agent
    WITH CHECK (by_agent_id = (SELECT aios_agent_id()) AND aios_may_write_file(file_id, owner_id));
CREATE POLICY agent_update ON file_version FOR UPDATE TO aios_agent
    USING (aios_may_write_file(file_id, owner_id))
    WITH CHECK (aios_may_write_file(file_id, owner_id));
CREATE POLICY agent_delete ON file_version FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR file_id = ANY ((SELECT aios_files('write'))::bigint[])
    );

CREATE POLICY agent_select ON file_chunk FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR file_id = ANY ((SELECT aios_files('see'))::bigint[])
    );
CREATE POLICY agent_insert ON file_chunk FOR INSERT TO aios_agent
    WITH CHECK (aios_may_write_file(file_id, owner_id));
CREATE POLICY agent_update ON file_chunk FOR UPDATE TO aios_agent
    USING (aios_may_write_file(file_id, owner_id))
    WITH CHECK (aios_may_write_file(file_id, owner_id));
CREATE POLICY agent_delete ON file_chunk FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR file_id = ANY ((SELECT aios_files('write'))::bigint[])
    );

CREATE POLICY agent_select ON mount FOR SELECT TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()));
CREATE POLICY agent_insert ON mount FOR INSERT TO aios_agent
    WITH CHECK (owner_id = (SELECT aios_agent_id()));
CREATE POLICY agent_update ON mount FOR UPDATE TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()))
    WITH CHECK (owner_id = (SELECT aios_agent_id()));
CREATE POLICY agent_delete ON mount FOR DELETE TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()));

CREATE POLICY agent_select ON share_link FOR SELECT TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR file_id = ANY ((SELECT aios_files('share'))::bigint[])
    );
CREATE POLICY agent_insert ON share_link FOR INSERT TO aios_agent
    WITH CHECK (
        aios_owns(owner_id, 'file', file_id::text)
        AND (
            owner_id = (SELECT aios_agent_id())
            OR file_id = ANY ((SELECT aios_files('share'))::bigint[])
        )
    );
CREATE POLICY agent_delete ON share_link FOR DELETE TO aios_agent
    USING (
        owner_id = (SELECT aios_agent_id())
        OR file_id = ANY ((SELECT aios_files('share'))::bigint[])
    );

CREATE POLICY agent_select ON mount_file FOR SELECT TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()));

CREATE POLICY agent_select ON mount_chunk FOR SELECT TO aios_agent
    USING (owner_id = (SELECT aios_agent_id()));
