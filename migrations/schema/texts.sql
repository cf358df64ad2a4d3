-- How many words a text has, each as often as it comes: what generated columns keep.
CREATE FUNCTION aios_length(words tsvector) RETURNS integer
    IMMUTABLE PARALLEL SAFE LANGUAGE sql
    AS $$ SELECT coalesce(sum(cardinality(w.positions)), 0)::integer FROM unnest(words) w $$;
