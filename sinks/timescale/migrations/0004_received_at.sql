-- Readers follow `received_at` across all chunks. A chunk has its rows in the order of their
-- arrival, for which BRIN takes kilobytes. Without autosummarize the pages since the last vacuum of
-- a chunk, up to a fifth of it, would be read each time.
--
-- Writes wait while it reads the whole table. On a big one it is made before, chunk by chunk: see
-- docs/loading.md.
CREATE INDEX IF NOT EXISTS events_received_at ON events
    USING brin (received_at) WITH (autosummarize = on);
