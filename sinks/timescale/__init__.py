"""The sink and quarantine on PostgreSQL with TimescaleDB. No other package imports asyncpg.

`sink` has the sink itself, `quarantine` keeps drops. A write of events goes through `writes`
(which attempt follows which failure), `statements` (one attempt), `search` (duplicates) and
`encoding` (rows). `connection` keeps a `session` with the primary that `hosts` finds. `schema`,
`retention` and `inspection` are for the commands; all of them raise `errors.DatabaseError`.
"""
