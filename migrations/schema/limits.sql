-- How much of a kind there may be: counted at each insert, whatever operation it is of. A limit that is met
-- is the error AI001: message `kind most`, detail who it is.

SET LOCAL check_function_bodies = off;

-- What the operator alone sets, and what only the kernel's own functions write.
DO $$
DECLARE
    guarded text;
BEGIN
    FOREACH guarded IN ARRAY ARRAY['object_limit', 'note_use', 'suspension'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', guarded);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', guarded);
        EXECUTE format('CREATE POLICY steward ON %I TO aios_steward USING (true)', guarded);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO aios_steward', guarded);
    END LOOP;
END $$;

GRANT CREATE ON SCHEMA public TO aios_steward;
SET LOCAL ROLE aios_steward;

-- The limit of an agent (or, of what belongs to tenants, of a tenant): its own, else its tenant's, else
-- everybody's; null: none.
CREATE FUNCTION aios_most(agent bigint, tenant bigint, wanted text) RETURNS bigint
    STABLE SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT most FROM object_limit l
     WHERE l.kind = wanted AND (l.agent_id = agent
        OR l.agent_id IS NULL AND (l.tenant_id = tenant OR l.tenant_id IS NULL))
     ORDER BY l.agent_id NULLS LAST, l.tenant_id NULLS LAST LIMIT 1
$$;

CREATE FUNCTION aios_limit_met(wanted text, most bigint, who text) RETURNS void
    LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'AI001', MESSAGE = wanted || ' ' || most, DETAIL = who;
END $$;

-- Arguments: the kind; the column that names the owner; what else is true of those that count. It counts
-- no further than to one too many. Who adds to the same owner's at the same time waits for this commit, and
-- counts then: a lock per owner and kind, which is held for the rest of the transaction.
CREATE FUNCTION aios_check_limit() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    owner bigint; most bigint; there bigint; who text; condition text := coalesce(TG_ARGV[2], 'true');
BEGIN
    FOR owner IN EXECUTE format('SELECT DISTINCT %I FROM changed ORDER BY 1', TG_ARGV[1]) LOOP
        IF TG_ARGV[1] = 'tenant_id' THEN
            SELECT 'tenant ' || name INTO who FROM tenant WHERE id = owner;
            most := aios_most(NULL, owner, TG_ARGV[0]);
        ELSE
            SELECT 'agent ' || a.name, aios_most(a.id, a.tenant_id, TG_ARGV[0]) INTO who, most
              FROM agent a WHERE a.id = owner;
        END IF;
        CONTINUE WHEN most IS NULL;
        PERFORM pg_advisory_xact_lock(hashtextextended(
            format('aios.limit %s %s %s', TG_ARGV[0], TG_ARGV[1], owner), 0));
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %I WHERE %I = $1 AND %s LIMIT $2) found',
            TG_TABLE_NAME, TG_ARGV[1], condition) INTO there USING owner, most + 1;
        IF there > most THEN PERFORM aios_limit_met(TG_ARGV[0], most, who); END IF;
    END LOOP;
    RETURN NULL;
END $$;

-- Notes are many and may be long: their number and their bytes are kept, not counted each time.
CREATE FUNCTION aios_add_notes(owner bigint, by_count bigint, by_bytes bigint) RETURNS void
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    there record; who text; most bigint; most_bytes bigint;
BEGIN
    SELECT 'agent ' || a.name, aios_most(a.id, a.tenant_id, 'notes'),
           aios_most(a.id, a.tenant_id, 'note_bytes')
      INTO who, most, most_bytes FROM agent a WHERE a.id = owner;
    IF who IS NULL THEN RETURN; END IF;  -- the agent itself is deleted
    INSERT INTO note_use AS u (owner_id, count, bytes) VALUES (owner, by_count, by_bytes)
        ON CONFLICT (owner_id) DO UPDATE
           SET count = u.count + excluded.count, bytes = u.bytes + excluded.bytes
        RETURNING count, bytes INTO there;
    IF by_count > 0 AND there.count > most THEN PERFORM aios_limit_met('notes', most, who); END IF;
    IF by_bytes > 0 AND there.bytes > most_bytes THEN
        PERFORM aios_limit_met('note_bytes', most_bytes, who);
    END IF;
END $$;

CREATE FUNCTION aios_note_bytes(content text, context text, metadata jsonb, names text[])
    RETURNS bigint STABLE LANGUAGE sql AS $$
    SELECT (octet_length(content) + octet_length(context) + octet_length(metadata::text)
        + octet_length(array_to_string(names, ' ')))::bigint
$$;

-- A note is as large as it is now and was in each older version that is kept. What it was is added when
-- its version changes, whatever operation that is of, and taken off when a version is pushed out.
CREATE FUNCTION aios_note_grows() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    NEW.old_bytes := OLD.old_bytes + aios_note_bytes(
        OLD.content, OLD.context, OLD.metadata, OLD.keywords || OLD.tags || OLD.links);
    RETURN NEW;
END $$;

CREATE FUNCTION aios_versions_pushed_out() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE note n SET old_bytes = greatest(0, n.old_bytes - gone.bytes)
      FROM (SELECT note_id, sum(aios_note_bytes(body ->> 'content', body ->> 'context',
                   body -> 'metadata', ARRAY(SELECT jsonb_array_elements_text(
                       (body -> 'keywords') || (body -> 'tags') || (body -> 'links'))))) AS bytes
              FROM changed GROUP BY note_id) gone
     WHERE n.id = gone.note_id;  -- where the note itself is deleted there is none
    RETURN NULL;
END $$;

CREATE FUNCTION aios_notes_added() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM aios_add_notes(owner_id, count(*), sum(old_bytes +
        aios_note_bytes(content, context, metadata, keywords || tags || links))::bigint)
       FROM changed GROUP BY owner_id;
    RETURN NULL;
END $$;

CREATE FUNCTION aios_notes_removed() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM aios_add_notes(owner_id, -count(*), -sum(old_bytes +
        aios_note_bytes(content, context, metadata, keywords || tags || links))::bigint)
       FROM changed GROUP BY owner_id;
    RETURN NULL;
END $$;

CREATE FUNCTION aios_notes_rewritten() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM aios_add_notes(owner_id, 0, sum(by)::bigint) FROM (
        SELECT owner_id, old_bytes
            + aios_note_bytes(content, context, metadata, keywords || tags || links) AS by
          FROM changed
        UNION ALL
        SELECT owner_id, -old_bytes
            - aios_note_bytes(content, context, metadata, keywords || tags || links)
          FROM before) changes
     GROUP BY owner_id HAVING sum(by) <> 0;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION aios_most, aios_limit_met, aios_add_notes FROM PUBLIC;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM aios_steward;

CREATE TRIGGER note_grows BEFORE UPDATE OF version ON note FOR EACH ROW
    WHEN (OLD.version IS DISTINCT FROM NEW.version) EXECUTE FUNCTION aios_note_grows();
CREATE TRIGGER versions_pushed_out AFTER DELETE ON note_version REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_versions_pushed_out();
CREATE TRIGGER notes_added AFTER INSERT ON note REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_notes_added();
CREATE TRIGGER notes_removed AFTER DELETE ON note REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_notes_removed();
CREATE TRIGGER notes_rewritten AFTER UPDATE ON note
    REFERENCING OLD TABLE AS before NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_notes_rewritten();

CREATE TRIGGER limited AFTER INSERT ON file REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('files', 'owner_id');
CREATE TRIGGER limited AFTER INSERT ON directory REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('directories', 'owner_id');
CREATE TRIGGER limited AFTER INSERT ON share_link REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('links', 'owner_id', 'expires_at > now()');
CREATE TRIGGER limited AFTER INSERT ON mount REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('mounts', 'owner_id');
CREATE TRIGGER limited AFTER INSERT ON access_grant REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('grants', 'owner_id');
CREATE TRIGGER limited AFTER INSERT ON approval REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT
    EXECUTE FUNCTION aios_check_limit('waiting_approvals', 'agent_id', $$state = 'waiting'$$);
CREATE TRIGGER limited AFTER INSERT ON agent REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('agents', 'tenant_id');
CREATE TRIGGER limited AFTER INSERT ON privilege_group REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION aios_check_limit('groups', 'tenant_id');
