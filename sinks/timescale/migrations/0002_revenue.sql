-- Sandbox money can be told apart, every parameter is within reach, and small ad revenues that are
-- written with an exponent are numbers.

CREATE OR REPLACE FUNCTION decimal_or_null(sent text) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        -- numeric holds 131,072 digits before the point and 16,383 after it.
        WHEN length(sent) > 16000 THEN NULL
        WHEN sent ~ '^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$' THEN sent::numeric
        -- An exponent may add 999 of either.
        WHEN length(sent) > 15000 THEN NULL
        WHEN sent ~ '^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]{1,3}$' THEN
            CASE WHEN length(translate(sent::numeric::text, '-.', '')) <= 1000
                THEN sent::numeric
            END
    END;

CREATE OR REPLACE VIEW revenue_events AS
SELECT
    event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
    user_id, adid, idfa, gps_adid, os_name, country,
    decimal_or_null(coalesce(properties ->> 'revenue_float', properties ->> 'revenue'))
        AS revenue_amount,
    upper(properties ->> 'currency') AS currency,
    properties ->> 'environment' AS environment,
    properties
FROM events
WHERE properties ->> 'revenue_float' IS NOT NULL OR properties ->> 'revenue' IS NOT NULL;
