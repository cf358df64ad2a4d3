-- aios_agent: what the modules run as; sees what row-level security lets it see.
-- aios_steward: the kernel's own tasks over all agents (sweeps, indexing, the operator's commands).
--
-- The kernel's login takes one of them for each transaction, and has the rights of neither without:
-- a query that forgets it sees no row of an agent's.
--
-- Both are the server's: other databases may have made them already, or make them at this moment.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['aios_agent', 'aios_steward'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another was faster
        END;
        IF NOT pg_has_role(current_user, wanted, 'SET') THEN
            EXECUTE format('GRANT %I TO %I WITH SET TRUE, INHERIT FALSE', wanted, current_user);
        END IF;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA public TO aios_agent, aios_steward;
