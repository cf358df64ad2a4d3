-- Words of texts: how many texts of an owner have each, kept by triggers, and search by them (BM25).

SET LOCAL check_function_bodies = off;

-- An agent reads them by the functions below, of those alone whose texts it may see.
DO $$
DECLARE
    guarded text;
BEGIN
    FOREACH guarded IN ARRAY ARRAY['text_use', 'word_use'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', guarded);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', guarded);
        EXECUTE format('CREATE POLICY steward ON %I TO aios_steward USING (true)', guarded);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO aios_steward', guarded);
    END LOOP;
END $$;

GRANT CREATE ON SCHEMA public TO aios_steward;
SET LOCAL ROLE aios_steward;

-- The owner's row of text_use goes first: who holds it may change the owner's words, in any order.
CREATE FUNCTION aios_words_added() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO text_use AS u (corpus, owner_id, texts, length)
        SELECT TG_TABLE_NAME, owner_id, count(*), sum(length) FROM changed
         GROUP BY owner_id ORDER BY owner_id
        ON CONFLICT (corpus, owner_id) DO UPDATE
           SET texts = u.texts + excluded.texts, length = u.length + excluded.length;
    INSERT INTO word_use AS u (corpus, owner_id, word, texts)
        SELECT TG_TABLE_NAME, c.owner_id, w.lexeme, count(*) FROM changed c, unnest(c.words) w
         GROUP BY c.owner_id, w.lexeme
        ON CONFLICT (corpus, owner_id, word) DO UPDATE SET texts = u.texts + excluded.texts;
    RETURN NULL;
END $$;

CREATE FUNCTION aios_words_removed() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM text_use WHERE corpus = TG_TABLE_NAME
        AND owner_id IN (SELECT owner_id FROM changed) ORDER BY owner_id FOR UPDATE;
    UPDATE text_use u SET texts = u.texts - gone.texts, length = u.length - gone.length
      FROM (SELECT owner_id, count(*) AS texts, sum(length) AS length FROM changed
             GROUP BY owner_id) gone
     WHERE u.corpus = TG_TABLE_NAME AND u.owner_id = gone.owner_id;
    UPDATE word_use u SET texts = u.texts - gone.texts
      FROM (SELECT c.owner_id, w.lexeme, count(*) AS texts FROM changed c, unnest(c.words) w
             GROUP BY c.owner_id, w.lexeme) gone
     WHERE u.corpus = TG_TABLE_NAME AND u.owner_id = gone.owner_id AND u.word = gone.lexeme;
    DELETE FROM word_use u USING
        (SELECT DISTINCT c.owner_id, w.lexeme FROM changed c, unnest(c.words) w) gone
     WHERE u.corpus = TG_TABLE_NAME AND u.owner_id = gone.owner_id AND u.word = gone.lexeme
       AND u.texts <= 0;
    RETURN NULL;
END $$;

-- One row at a time: not called where only its vector is written.
CREATE FUNCTION aios_words_rewritten() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE text_use SET length = length + NEW.length - OLD.length
     WHERE corpus = TG_TABLE_NAME AND owner_id = NEW.owner_id;
    INSERT INTO word_use AS u (corpus, owner_id, word, texts)
        SELECT TG_TABLE_NAME, NEW.owner_id, lexeme, 1 FROM (
            SELECT lexeme FROM unnest(NEW.words) EXCEPT SELECT lexeme FROM unnest(OLD.words)) w
        ON CONFLICT (corpus, owner_id, word) DO UPDATE SET texts = u.texts + 1;
    WITH gone AS (SELECT lexeme FROM unnest(OLD.words) EXCEPT SELECT lexeme FROM unnest(NEW.words))
    UPDATE word_use u SET texts = u.texts - 1 FROM gone
     WHERE u.corpus = TG_TABLE_NAME AND u.owner_id = NEW.owner_id AND u.word = gone.lexeme;
    DELETE FROM word_use u USING unnest(OLD.words) w
     WHERE u.corpus = TG_TABLE_NAME AND u.owner_id = NEW.owner_id AND u.word = w.lexeme
       AND u.texts <= 0;
    RETURN NULL;
END $$;

CREATE FUNCTION aios_words_forgotten() RETURNS trigger
    SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM word_use WHERE owner_id = OLD.id;
    RETURN NULL;
END $$;

-- Texts whose words are counted when they are asked for: of others' notes and files those that are
-- seen one by one (a sample of a thousand, where they are more).
CREATE FUNCTION aios_seen_singly(of_corpus text, owners bigint[], singles text[])
    RETURNS TABLE (words tsvector, length integer)
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    me bigint := aios_agent_id();
    blocks bigint[] := aios_blocks('see');
    files bigint[];
BEGIN
    IF of_corpus = 'note' THEN
        RETURN QUERY SELECT n.words, n.length FROM note n
         WHERE n.id = ANY (singles) AND n.id = ANY (aios_notes('see'))
           AND n.owner_id <> me AND n.owner_id <> ALL (blocks)
           AND (n.expires_at IS NULL OR n.expires_at > now()) LIMIT 1000;
    ELSIF of_corpus = 'file_chunk' AND owners IS DISTINCT FROM ARRAY[me] THEN
        files := aios_files('see');
        RETURN QUERY SELECT c.words, c.length FROM file_chunk c
         WHERE c.file_id = ANY (files) AND c.owner_id <> me
           AND (owners IS NULL OR c.owner_id = ANY (owners)) LIMIT 1000;
    END IF;
END $$;

-- In how many texts each word is, of how many and how long in all: of these owners (null: all), as
-- far as the session's agent sees all that they have, and of `singles`. A note that has expired and
-- is still there is not counted.
CREATE FUNCTION aios_word_use(
        of_corpus text, owners bigint[], singles text[], wanted text[],
        OUT all_texts bigint, OUT all_length bigint, OUT words text[], OUT texts bigint[])
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    seen bigint[] := ARRAY[aios_agent_id()];
    more record;
BEGIN
    IF of_corpus = 'note' THEN seen := seen || aios_blocks('see'); END IF;
    IF owners IS NOT NULL THEN
        seen := ARRAY(SELECT unnest(seen) INTERSECT SELECT unnest(owners));
    END IF;
    SELECT coalesce(sum(u.texts), 0), coalesce(sum(u.length), 0) INTO all_texts, all_length
      FROM text_use u WHERE u.corpus = of_corpus AND u.owner_id = ANY (seen);
    WITH other AS MATERIALIZED (
        SELECT words, length, 1 AS sign FROM aios_seen_singly(of_corpus, owners, singles)
        UNION ALL
        (SELECT n.words, n.length, -1 FROM note n
          WHERE of_corpus = 'note' AND n.expires_at <= now() AND n.owner_id = ANY (seen)
          LIMIT 1000)
    ), of_word AS (
        SELECT u.word, u.texts FROM word_use u
         WHERE u.corpus = of_corpus AND u.owner_id = ANY (seen) AND u.word = ANY (wanted)
        UNION ALL
        SELECT w.lexeme, o.sign FROM other o, unnest(o.words) w WHERE w.lexeme = ANY (wanted)
    ), summed AS (
        SELECT word, sum(texts)::bigint AS texts FROM of_word GROUP BY word HAVING sum(texts) > 0
    )
    SELECT (SELECT coalesce(sum(sign), 0) FROM other) AS texts,
           (SELECT coalesce(sum(sign * length), 0) FROM other) AS length,
           (SELECT array_agg(word ORDER BY texts, word) FROM summed) AS words,
           (SELECT array_agg(s.texts ORDER BY s.texts, s.word) FROM summed s) AS counts
      INTO more;
    all_texts := all_texts + more.texts;
    all_length := all_length + more.length;
    words := coalesce(more.words, '{}');
    texts := coalesce(more.counts, '{}');
END $$;

-- The SQL of a text's BM25, of its columns words and length: each word's weight by how often it
-- comes, less in a long text. `ts_rank` of one word, at weight 1, grows with its n-th time by
-- 6 / pi^2 / n^2: up to a hundred times are told apart. (A tsvector keeps 256 of a word.)
CREATE FUNCTION aios_bm25(words text[], weights float8[], flat float8, steep float8) RETURNS text
    STABLE LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT coalesce(string_agg(format(
        'coalesce(%s::float8 / (1 + (%s::float8 + %s::float8 * length) / nullif(width_bucket('
        'ts_rank(''{1,1,1,1}'', words, %L::tsquery)::float8, aios_steps()), 0)), 0)',
        w.weight, flat, steep, '''' || replace(replace(w.word, '\', '\\'), '''', '''''') || ''''
        ), ' + '), '0::float8')
      FROM unnest(words, weights) w (word, weight)
$$;
CREATE FUNCTION aios_steps() RETURNS float8[]
    IMMUTABLE PARALLEL SAFE LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT array_agg((total - 0.5 / n / n) / 1.64493406685 ORDER BY n) FROM (
        SELECT n, sum(1.0::float8 / n / n) OVER (ORDER BY n) AS total FROM generate_series(1, 100) n
    ) sums
$$;

-- Search. Under row-level security Postgres does not ask the index of words first: the match could
-- tell of rows that are not seen. So these match, and look themselves at what the session's agent
-- may see; the rows are then read under row-level security as all others. Of the `most` first rows
-- that match the query they return the keys and scores of the `best` (null: of all of them); of
-- these owners alone, or all. The weights are texts' BM25, as above.

CREATE FUNCTION aios_note_matches(query tsquery, words text[], weights float8[], flat float8,
        steep float8, owners bigint[], most integer, best integer)
    RETURNS TABLE (id text, score float8)
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN RETURN QUERY EXECUTE
    'SELECT id, ' || aios_bm25(words, weights, flat, steep) || ' AS score FROM (
        SELECT n.id, n.words || '''' AS words, n.length FROM note n
         WHERE n.words @@ $1 AND ($2 IS NULL OR n.owner_id = ANY ($2))
           AND (n.owner_id = $3 OR n.owner_id = ANY ($4) OR n.id = ANY ($5))
           AND (n.expires_at IS NULL OR n.expires_at > now())
         LIMIT $6) n ORDER BY score DESC, id LIMIT $7'
    USING query, owners, aios_agent_id(), aios_blocks('see'), aios_notes('see'), most, best;
END $$;

CREATE FUNCTION aios_file_chunk_matches(query tsquery, words text[], weights float8[], flat float8,
        steep float8, owners bigint[], most integer, best integer)
    RETURNS TABLE (file_id bigint, ordinal integer, score float8)
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN RETURN QUERY EXECUTE
    'SELECT file_id, ordinal, ' || aios_bm25(words, weights, flat, steep) || ' AS score FROM (
        SELECT c.file_id, c.ordinal, c.words || '''' AS words, c.length FROM file_chunk c
         WHERE c.words @@ $1 AND ($2 IS NULL OR c.owner_id = ANY ($2))
           AND (c.owner_id = $3 OR c.file_id = ANY ($4))
         LIMIT $5) c ORDER BY score DESC, file_id, ordinal LIMIT $6'
    USING query, owners, aios_agent_id(), aios_files('see'), most, best;
END $$;

-- Mounts are their agent's alone: no grant reaches them.
CREATE FUNCTION aios_mount_chunk_matches(query tsquery, words text[], weights float8[], flat float8,
        steep float8, owners bigint[], most integer, best integer)
    RETURNS TABLE (file_id bigint, ordinal integer, score float8)
    STABLE SECURITY DEFINER LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN RETURN QUERY EXECUTE
    'SELECT file_id, ordinal, ' || aios_bm25(words, weights, flat, steep) || ' AS score FROM (
        SELECT c.file_id, c.ordinal, c.words || '''' AS words, c.length FROM mount_chunk c
         WHERE c.words @@ $1 AND c.owner_id = $2 LIMIT $3) c
      ORDER BY score DESC, file_id, ordinal LIMIT $4'
    USING query, aios_agent_id(), most, best;
END $$;

REVOKE ALL ON FUNCTION aios_seen_singly, aios_word_use,
    aios_note_matches, aios_file_chunk_matches, aios_mount_chunk_matches FROM PUBLIC;
GRANT EXECUTE ON FUNCTION aios_word_use,
    aios_note_matches, aios_file_chunk_matches, aios_mount_chunk_matches
    TO aios_agent, aios_steward;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM aios_steward;

DO $$
DECLARE
    counted text;
BEGIN
    FOREACH counted IN ARRAY ARRAY['note', 'file_chunk', 'mount_chunk'] LOOP
        EXECUTE format('CREATE TRIGGER words_added AFTER INSERT ON %I'
            ' REFERENCING NEW TABLE AS changed'
            ' FOR EACH STATEMENT EXECUTE FUNCTION aios_words_added()', counted);
        EXECUTE format('CREATE TRIGGER words_removed AFTER DELETE ON %I'
            ' REFERENCING OLD TABLE AS changed'
            ' FOR EACH STATEMENT EXECUTE FUNCTION aios_words_removed()', counted);
        EXECUTE format('CREATE TRIGGER words_rewritten AFTER UPDATE OF words ON %I FOR EACH ROW'
            ' WHEN (OLD.words IS DISTINCT FROM NEW.words)'
            ' EXECUTE FUNCTION aios_words_rewritten()', counted);
    END LOOP;
END $$;
CREATE TRIGGER words_forgotten AFTER DELETE ON agent
    FOR EACH ROW EXECUTE FUNCTION aios_words_forgotten();
