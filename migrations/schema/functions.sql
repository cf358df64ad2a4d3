-- What the policies ask, and what search does in the place of a policy.

-- Functions refer to one another and to what is made later.
SET LOCAL check_function_bodies = off;

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

-- All that follow are the steward's and look with its eyes.
GRANT CREATE ON SCHEMA public TO aios_steward;
SET LOCAL ROLE aios_steward;

-- Read by policies, once per query.

CREATE FUNCTION aios_groups() RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce(array_agg(m.group_id), '{}') FROM membership m
    JOIN privilege_group p ON p.id = m.group_id
    WHERE m.agent_id = aios_agent_id() AND p.tenant_id = aios_tenant_id()
$$;

CREATE FUNCTION aios_granted(kind text, verb text) RETURNS text[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce(array_agg(DISTINCT g.object_id), '{}') FROM access_grant g
    WHERE g.tenant_id = aios_tenant_id() AND g.object_kind = kind
      AND (g.expires_at IS NULL OR g.expires_at > now()) AND g.verbs && aios_verbs(verb)
      AND (g.agent_id = aios_agent_id() OR g.group_id = ANY (aios_groups()))
$$;

CREATE FUNCTION aios_blocks(verb text) RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT aios_granted('block', verb)::bigint[]
$$;

CREATE FUNCTION aios_notes(verb text) RETURNS text[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT aios_granted('note', verb)
$$;

CREATE FUNCTION aios_tops(verb text) RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT aios_granted('directory', verb)::bigint[]
$$;

CREATE FUNCTION aios_directories(verb text) RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce(array_agg(DISTINCT d.id), '{}') FROM directory t
    JOIN directory d ON d.owner_id = t.owner_id AND t.id = ANY (d.ancestors)
    WHERE t.id = ANY (aios_tops(verb))
$$;

CREATE FUNCTION aios_files(verb text) RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce(array_agg(f.id), '{}') FROM file f
    WHERE f.id = ANY (aios_granted('file', verb)::bigint[])
       OR f.directory_id = ANY (aios_directories(verb))
$$;

CREATE FUNCTION aios_file_owners(verb text) RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce(array_agg(DISTINCT o.owner_id), '{}') FROM (
        SELECT owner_id FROM file WHERE id = ANY (aios_granted('file', verb)::bigint[])
        UNION ALL SELECT owner_id FROM directory WHERE id = ANY (aios_tops(verb))) o
$$;

CREATE FUNCTION aios_is_administrator() RETURNS boolean
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce((SELECT administrator FROM agent
                     WHERE id = aios_agent_id() AND tenant_id = aios_tenant_id()), false)
$$;

-- Who decides for others sees what they ask for, as administrators do.
CREATE FUNCTION aios_oversees() RETURNS boolean
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce((SELECT administrator OR decides FROM agent
                     WHERE id = aios_agent_id() AND tenant_id = aios_tenant_id()), false)
$$;

-- All that one hand may move: an agent; who can speak as it, since it registered it or issued a token
-- of it, and who can speak as those; and everybody whom one of these can speak as. Tokens that are
-- over count as long as anything that was asked with them may wait.
CREATE FUNCTION aios_circle(one bigint) RETURNS bigint[]
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    WITH RECURSIVE hand (speaker, spoken_for) AS (
        SELECT registered_by, id FROM agent WHERE registered_by IS NOT NULL
        UNION SELECT issued_by, agent_id FROM agent_token WHERE issued_by IS NOT NULL
    ), behind (id) AS (
        SELECT one UNION SELECT h.speaker FROM behind b JOIN hand h ON h.spoken_for = b.id
    ), circle (id) AS (
        SELECT id FROM behind UNION SELECT h.spoken_for FROM circle c JOIN hand h ON h.speaker = c.id
    )
    SELECT array_agg(id) FROM circle
$$;

-- Whether an agent decides for another: where the operator lets it, the other is not of its circle,
-- and holds nothing that was granted by one of it.
CREATE FUNCTION aios_may_decide(decider bigint, asker bigint) RETURNS boolean
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
DECLARE circle bigint[] := aios_circle(decider);
BEGIN RETURN (
    SELECT EXISTS (SELECT FROM agent d JOIN agent a ON a.tenant_id = d.tenant_id
                   WHERE d.id = decider AND a.id = asker AND d.decides)
       AND asker <> ALL (circle)
       AND NOT EXISTS (SELECT FROM access_grant g
            WHERE g.granted_by = ANY (circle)
              AND (g.expires_at IS NULL OR g.expires_at > now())
              AND (g.agent_id = asker
                   OR g.group_id IN (SELECT m.group_id FROM membership m
                                     WHERE m.agent_id = asker)))
); END $$;

CREATE FUNCTION aios_agent_name() RETURNS text
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT name FROM agent WHERE id = aios_agent_id() AND tenant_id = aios_tenant_id()
$$;

CREATE FUNCTION aios_tenant_name() RETURNS text
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT name FROM tenant WHERE id = aios_tenant_id()
$$;

-- Asked for a row that is written: VOLATILE, so that they see what the same statement has written.

-- Whether all these directories are this agent's.
CREATE FUNCTION aios_all_of(owner bigint, ids bigint[]) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT count(*) = cardinality(ids) FROM directory
    WHERE id = ANY (ids) AND owner_id = owner
); END $$;

CREATE FUNCTION aios_may_write_file(file_id bigint, owner bigint) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT EXISTS (SELECT FROM file f JOIN directory d ON d.id = f.directory_id
        WHERE f.id = file_id AND f.owner_id = owner AND (owner = aios_agent_id()
            OR f.id = ANY (aios_granted('file', 'write')::bigint[])
            OR d.ancestors && aios_tops('write')))
); END $$;

CREATE FUNCTION aios_may_write_note(note_id text, owner bigint) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT EXISTS (SELECT FROM note n WHERE n.id = note_id AND n.owner_id = owner
        AND (owner = aios_agent_id() OR owner = ANY (aios_blocks('write'))
             OR n.id = ANY (aios_notes('write'))))
); END $$;

CREATE FUNCTION aios_is_loose(owner bigint, digest text) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT NOT EXISTS (SELECT FROM file_version v
                       WHERE v.owner_id = owner AND v.sha256 = digest)
); END $$;

CREATE FUNCTION aios_is_group_administrator(in_group bigint) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT EXISTS (SELECT FROM privilege_group p
        WHERE p.id = in_group AND p.tenant_id = aios_tenant_id()
          AND (aios_is_administrator() OR EXISTS (SELECT FROM membership m
              WHERE m.group_id = p.id AND m.agent_id = aios_agent_id() AND m.role = 'admin')))
); END $$;

-- Who has made a group is its first member: nobody else is, and nothing is granted to it.
CREATE FUNCTION aios_is_new_group(in_group bigint) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT EXISTS (SELECT FROM privilege_group
                   WHERE id = in_group AND tenant_id = aios_tenant_id())
       AND NOT EXISTS (SELECT FROM membership WHERE group_id = in_group)
       AND NOT EXISTS (SELECT FROM access_grant WHERE group_id = in_group)
); END $$;

CREATE FUNCTION aios_in_tenant(agent bigint, in_group bigint) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT coalesce((SELECT tenant_id FROM agent a WHERE a.id = agent),
                    (SELECT tenant_id FROM privilege_group p WHERE p.id = in_group))
           = aios_tenant_id()
); END $$;

CREATE FUNCTION aios_owns(owner bigint, kind text, object_id text) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT CASE kind WHEN 'block' THEN owner::text = object_id
        WHEN 'note' THEN EXISTS (SELECT FROM note n
                                 WHERE n.id = object_id AND n.owner_id = owner)
        WHEN 'file' THEN EXISTS (SELECT FROM file f
                                 WHERE f.id = object_id::bigint AND f.owner_id = owner)
        WHEN 'directory' THEN EXISTS (SELECT FROM directory d
                                 WHERE d.id = object_id::bigint AND d.owner_id = owner)
        ELSE false END
); END $$;

CREATE FUNCTION aios_holds(kind text, object_id text, verb text) RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT CASE kind WHEN 'block' THEN object_id = ANY (aios_granted('block', verb))
        WHEN 'note' THEN object_id = ANY (aios_granted('note', verb)) OR EXISTS (
            SELECT FROM note n WHERE n.id = object_id AND n.owner_id = ANY (aios_blocks(verb)))
        WHEN 'file' THEN object_id = ANY (aios_granted('file', verb)) OR EXISTS (
            SELECT FROM file f JOIN directory d ON d.id = f.directory_id
            WHERE f.id = object_id::bigint AND d.ancestors && aios_tops(verb))
        WHEN 'directory' THEN EXISTS (SELECT FROM directory d
            WHERE d.id = object_id::bigint AND d.ancestors && aios_tops(verb))
        ELSE false END
); END $$;

-- A grant is given by the owner, or by who may share: then nothing that it may not do itself.
CREATE FUNCTION aios_may_grant(owner bigint, kind text, object_id text, verbs text[])
    RETURNS boolean
    VOLATILE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
BEGIN RETURN (
    SELECT aios_owns(owner, kind, object_id) AND (owner = aios_agent_id()
        OR aios_holds(kind, object_id, 'share')
        AND NOT EXISTS (SELECT FROM unnest(verbs) v
                        WHERE NOT aios_holds(kind, object_id, v)))
); END $$;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM aios_steward;
