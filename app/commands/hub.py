"""The SQL of a hub: one read-only PostgreSQL with the tables of all cells, by `postgres_fdw`."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.settings import SettingsError

# The role of the hub in each cell, and the role of its analysts.
CELL_ROLE, ANALYSTS = "flokit_hub", "flokit_analysts"
# PostgreSQL cuts longer names of tables, so that two might become one.
NAME_BYTES_MAX = 63
# By table of the hub: the view of a cell that it shows, and its columns in addition to `cell`.
TABLES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "events": (
        "cell_events",
        {
            "event_id": "uuid",
            "occurred_at": "timestamptz",
            "received_at": "timestamptz",
            "workspace_id": "text",
            "vendor": "text",
            "app_token": "text",
            "event_type": "text",
            "user_id": "text",
            "adid": "text",
            "idfa": "text",
            "gps_adid": "text",
            "os_name": "text",
            "country": "text",
            "environment": "text",
            "properties": "jsonb",
        },
    ),
    "events_by_day": (
        "events_by_day",
        {
            "workspace_id": "text",
            "day": "timestamptz",
            "vendor": "text",
            "app_token": "text",
            "event_type": "text",
            "environment": "text",
            "events": "bigint",
        },
    ),
    "revenue_by_day": (
        "revenue_by_day",
        {
            "workspace_id": "text",
            "day": "timestamptz",
            "vendor": "text",
            "app_token": "text",
            "event_type": "text",
            "currency": "text",
            "environment": "text",
            "events": "bigint",
            "events_without_amount": "bigint",
            "revenue": "numeric",
        },
    ),
}
_CELL = re.compile(r"[A-Za-z0-9_-]+")
_HEAD = """\
-- The hub: one read-only PostgreSQL with the tables of all cells. See docs/hub.md.
--
-- For psql, as a superuser of the hub, in a database of its own. Safe to run again, after every
-- change of the workspaces file: it adds what is missing, and keeps addresses, passwords and
-- detached tables as they are. For each new cell psql needs these variables, best in a file that
-- comes before this one (psql -f cells.psql -f hub.sql):
--
{variables}

\\set ON_ERROR_STOP on
SET client_min_messages = warning;  -- not of each part that exists
BEGIN;

DO $$
BEGIN
    IF to_regclass('schema_migrations') IS NOT NULL THEN
        RAISE 'this is the database of a cell: the hub needs a database of its own';
    END IF;
END
$$;

CREATE EXTENSION IF NOT EXISTS postgres_fdw;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{analysts}') THEN
        CREATE ROLE {analysts} NOLOGIN;
    END IF;
    -- The cells sum up, each its own rows. Days are those of UTC.
    EXECUTE format(
        'ALTER DATABASE %I SET enable_partitionwise_aggregate = on', current_database());
    EXECUTE format('ALTER DATABASE %I SET timezone = ''UTC''', current_database());
END
$$;

CREATE SCHEMA IF NOT EXISTS cells;
"""
# `options` names the cell to its views: a partition holds rows of its own cell only, whatever the
# map of the workspaces is.
_SERVER = """
-- Cell {cell}

SELECT NOT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = '{cell}') AS is_new \\gset
\\if :is_new
CREATE SERVER "{cell}" FOREIGN DATA WRAPPER postgres_fdw OPTIONS (
    host :'{variable}_host', port :'{variable}_port', dbname :'{variable}_dbname',
    options '-c flokit.cell={cell}', connect_timeout '5', use_remote_estimate 'true',
    fetch_size '10000', async_capable 'true', updatable 'false'
);
CREATE USER MAPPING FOR PUBLIC SERVER "{cell}" OPTIONS (
    user '{role}', password :'{variable}_password'
);
\\endif
"""
_PARTITION = """\
CREATE FOREIGN TABLE IF NOT EXISTS cells."{table}_{cell}" PARTITION OF {table}
    FOR VALUES IN ('{cell}') SERVER "{cell}"
    OPTIONS (schema_name 'public', table_name '{view}');
"""
# Immutable, so that it is computed when a query is planned: other cells are not even connected to.
_FUNCTION = """
CREATE OR REPLACE FUNCTION cells_of_workspace(workspace_id text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
"""


class HubCell(NamedTuple):
    """A cell, and the workspaces with an app in it."""

    name: str
    workspace_ids: Sequence[str]


def hub_sql(cells: Sequence[HubCell]) -> str:
    """Return the SQL file of a hub over these cells, for psql; without passwords.

    Raises SettingsError for names that a hub cannot hold side by side.
    """
    variables = _variables(cells)
    needed = (
        f"--   \\set {variable}_{name} {value}"
        for variable in variables.values()
        for name, value in (
            ("host", "10.0.0.1"), ("port", "5432"), ("dbname", "flokit"),
            ("password", "'change-me'"),
        )
    )  # fmt: skip
    return "".join(
        (
            _HEAD.format(variables="\n".join(needed), analysts=ANALYSTS),
            *(_parent(table) for table in TABLES),
            *(_foreign(cell, variable) for cell, variable in variables.items()),
            _cells_of_workspace(cells),
            "\nCOMMIT;\n",
        )
    )


def _variables(cells: Sequence[HubCell]) -> Mapping[str, str]:
    """Return the prefix of psql's variables for each cell."""
    owners: dict[str, str] = {}
    longest = max(map(len, TABLES)) + len("_")
    for name, _ in cells:
        if not _CELL.fullmatch(name):
            raise SettingsError(f"cell {name!r}: a hub needs letters, digits, - and _ only")
        if longest + len(name) > NAME_BYTES_MAX:
            raise SettingsError(
                f"cell {name}: a hub takes names of at most {NAME_BYTES_MAX - longest} characters"
            )
        variable = name.replace("-", "_")
        if other := owners.get(variable):
            raise SettingsError(
                f"cells {other} and {name}: the names must differ in more than - and _ for a hub"
            )
        owners[variable] = name
    if not owners:
        raise SettingsError("no app has a `cell`: there is nothing for a hub to read")
    return {name: variable for variable, name in owners.items()}


def _parent(table: str) -> str:
    """Return the SQL of a table over all cells; columns of a later version are added."""
    _, columns = TABLES[table]
    added = ",\n".join(
        f"    ADD COLUMN IF NOT EXISTS {column} {kind}" for column, kind in columns.items()
    )
    return (
        f"\nCREATE TABLE IF NOT EXISTS {table} (cell text NOT NULL) PARTITION BY LIST (cell);\n"
        f"ALTER TABLE {table}\n{added};\nGRANT SELECT ON {table} TO {ANALYSTS};\n"
    )


def _foreign(cell: str, variable: str) -> str:
    """Return the SQL of a cell: its server, the password there, and a part of each table."""
    partitions = (
        _PARTITION.format(table=table, cell=cell, view=view) for table, (view, _) in TABLES.items()
    )
    return _SERVER.format(cell=cell, variable=variable, role=CELL_ROLE) + "".join(partitions)


def _cells_of_workspace(cells: Sequence[HubCell]) -> str:
    """Return the SQL of the function from a workspace to its cells; to all for an unknown one."""
    names_of: defaultdict[str, list[str]] = defaultdict(list)
    for cell in cells:
        for workspace_id in sorted(set(cell.workspace_ids)):
            names_of[workspace_id].append(cell.name)
    together: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for workspace_id, names in sorted(names_of.items()):
        together[tuple(names)].append(workspace_id)
    every = _array([cell.name for cell in cells])
    whens = "".join(
        f"        WHEN workspace_id IN ({', '.join(map(_literal, ids))}) THEN {_array(names)}\n"
        for names, ids in together.items()
    )
    returned = f"CASE\n{whens}        ELSE {every}\n    END" if whens else every
    return f"{_FUNCTION}    RETURN {returned};\n"


def _array(names: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(map(_literal, names))}]"


def _literal(text: str) -> str:
    """Return a text as a literal of SQL, which psql does not change."""
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
