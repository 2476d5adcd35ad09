"""The sink on PostgreSQL with TimescaleDB: the only room that imports asyncpg."""
