-- The events, the stable IDs, and the value that tells this database from every other.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
       -- Its library is loaded. The list of these an owner who is no superuser may not read.
       AND EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers') THEN
        CREATE EXTENSION IF NOT EXISTS timescaledb;
    END IF;
END
$$;

CREATE TABLE events (
    event_id     uuid        NOT NULL,
    occurred_at  timestamptz NOT NULL,
    received_at  timestamptz NOT NULL,
    workspace_id text        NOT NULL,
    vendor       text        NOT NULL,
    app_token    text        NOT NULL,
    event_type   text        NOT NULL,
    user_id      text,
    adid         text,
    idfa         text,
    gps_adid     text,
    os_name      text,
    country      text,
    properties   jsonb       NOT NULL
);

-- On plain PostgreSQL `events` stays an ordinary table; everything else is the same.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        PERFORM create_hypertable(
            'events', by_range('occurred_at', INTERVAL '1 day'), create_default_indexes => false);
    END IF;
END
$$;

-- Time first: new rows go to the end of the index, which serves reads by time as well.
CREATE UNIQUE INDEX events_occurred_at_event_id ON events (occurred_at, event_id);
CREATE INDEX events_workspace_type_time ON events (workspace_id, event_type, occurred_at);

-- An event with a stable ID is the same event at any time. No foreign key: it would deadlock
-- with the creation of chunks.
CREATE TABLE stable_events (
    event_id    uuid PRIMARY KEY,
    occurred_at timestamptz NOT NULL
);
CREATE INDEX stable_events_occurred_at ON stable_events USING brin (occurred_at);

CREATE TABLE generation (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    value   text NOT NULL
);
INSERT INTO generation (value) VALUES (left(gen_random_uuid()::text, 8));

CREATE FUNCTION decimal_or_null(sent text) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        -- numeric holds 131,072 digits before the point and 16,383 after it.
        WHEN sent ~ '^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$' AND length(sent) <= 16000
        THEN sent::numeric
    END;

CREATE VIEW revenue_events AS
SELECT
    event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
    user_id, adid, idfa, gps_adid, os_name, country,
    decimal_or_null(coalesce(properties ->> 'revenue_float', properties ->> 'revenue'))
        AS revenue_amount,
    upper(properties ->> 'currency') AS currency
FROM events
WHERE properties ->> 'revenue_float' IS NOT NULL OR properties ->> 'revenue' IS NOT NULL;
