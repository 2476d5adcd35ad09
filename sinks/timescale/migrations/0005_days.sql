-- Sums by day, which a hub over several cells reads instead of rows; and `events` with the columns
-- by which the hub groups. `cell` is the name under which the hub has connected: else null.

CREATE VIEW cell_events AS
SELECT
    current_setting('flokit.cell', true) AS cell,
    event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
    user_id, adid, idfa, gps_adid, os_name, country,
    properties ->> 'environment' AS environment,
    properties
FROM events;

DO $$
DECLARE
    -- From a range of time_bucket TimescaleDB derives a range of `occurred_at`, and plans and reads
    -- the chunks of these days only. It derives none from other expressions.
    day text := CASE
        WHEN EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        THEN 'time_bucket(INTERVAL ''1 day'', occurred_at)'
        ELSE 'date_bin(INTERVAL ''1 day'', occurred_at, TIMESTAMPTZ ''2000-01-01 00:00Z'')'
    END;
BEGIN
    EXECUTE format($view$
        CREATE VIEW events_by_day AS
        SELECT
            current_setting('flokit.cell', true) AS cell,
            workspace_id, %s AS day, vendor, app_token, event_type,
            properties ->> 'environment' AS environment,
            count(*) AS events
        FROM events
        GROUP BY workspace_id, day, vendor, app_token, event_type, environment
    $view$, day);
    EXECUTE format($view$
        CREATE VIEW revenue_by_day AS
        SELECT
            current_setting('flokit.cell', true) AS cell,
            workspace_id, %s AS day, vendor, app_token, event_type, currency, environment,
            count(*) AS events,
            count(*) - count(revenue_amount) AS events_without_amount,
            sum(revenue_amount) AS revenue
        FROM revenue_events
        GROUP BY workspace_id, day, vendor, app_token, event_type, currency, environment
    $view$, day);
END
$$;
