-- Dropped callbacks, which `replay` reads, and the traces of requests that were turned away.

CREATE TABLE dropped (
    drop_id      bigint GENERATED ALWAYS AS IDENTITY,
    received_at  timestamptz NOT NULL,
    vendor       text        NOT NULL,
    workspace_id text        NOT NULL,  -- empty for an unknown app
    app_token    text        NOT NULL,
    reason       text        NOT NULL,
    subject      text        NOT NULL,
    method       text        NOT NULL,
    -- As they were sent, without secrets: bytes, since a text may not hold all of them.
    query        bytea       NOT NULL,
    content_type text        NOT NULL,
    body         bytea       NOT NULL,
    event        bytea       -- of a refused event, in place of query and body
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        PERFORM create_hypertable(
            'dropped', by_range('received_at', INTERVAL '1 day'), create_default_indexes => false);
    END IF;
END
$$;

CREATE INDEX dropped_workspace_reason_subject_time
    ON dropped (workspace_id, reason, subject, received_at);
CREATE INDEX dropped_received_at ON dropped
    USING brin (received_at) WITH (autosummarize = on);

-- The size of the drops by day and account. Each writer has rows of its own, so that none waits
-- for another.
CREATE TABLE quarantine_usage (
    writer       text   NOT NULL,
    day          date   NOT NULL,
    workspace_id text   NOT NULL,
    reason       text   NOT NULL,
    subject      text   NOT NULL,
    rows         bigint NOT NULL,
    bytes        bigint NOT NULL,
    PRIMARY KEY (writer, day, workspace_id, reason, subject)
);

CREATE TABLE rejected (
    rejected_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL,
    vendor      text        NOT NULL,  -- empty where no adapter has the name
    reason      text        NOT NULL,
    address     text        NOT NULL,
    hint        text        NOT NULL
);

-- Rows that were written with an old `received_at`: readers that follow `received_at` read the
-- days again.
CREATE TABLE imports (
    import_id   uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    kind        text        NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    read        bigint      NOT NULL DEFAULT 0,
    written     bigint      NOT NULL DEFAULT 0,
    duplicate   bigint      NOT NULL DEFAULT 0,
    dropped     bigint      NOT NULL DEFAULT 0,
    -- The first and last day, in UTC, of the `occurred_at` of the written events.
    first_day   date,
    last_day    date
);

CREATE VIEW unmapped_events AS
SELECT workspace_id, vendor, app_token, subject AS event,
    count(*) AS callbacks, min(received_at) AS first_received_at, max(received_at) AS last_received_at
FROM dropped
WHERE reason = 'unmapped_event'
GROUP BY workspace_id, vendor, app_token, subject;
