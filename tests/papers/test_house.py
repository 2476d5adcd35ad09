"""The rules of the house: the imports between rooms, and the shape of the code."""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("app", "adapters", "sinks")
# "About" 40 and 250: a table or an import more is no reason to tear something apart.
FUNCTION_LINES_MAX = 42
MODULE_LINES_MAX = 275
TEST_MODULE_LINES_MAX = 400
REQUEST_PATH_LINES_MAX = 2_100
FORBIDDEN_ROOMS = {"utils", "util", "common", "core", "base", "helpers", "helper", "manager"}

# The imports between rooms: floor, rooms, our rooms that they may import, and the libraries.
# The first row that a room fits counts.
VOCABULARY = (
    "app.dropped", "app.errors", "app.event", "app.hidden", "app.json_objects", "app.normalize",
    "app.parameters",
    "app.readiness", "app.redaction", "app.settings", "app.signals", "app.vendor",
    "app.version", "app.workspaces_file",
)  # fmt: skip
COUNTERS = ("app.telemetry.metrics", "app.telemetry.outcomes", "app.telemetry.tallies")
DOORS = ("adapters", "app.claims", "sinks")
PLAN: list[tuple[int, str, tuple[str, ...], tuple[str, ...]]] = [
    (6, "app.__main__", ("app*", "sinks*"), ()),
    (6, "app.commands*", ("app*", "adapters", "sinks*"), ("msgspec",)),
    (6, "app.dev*", ("app*", "sinks*"), ()),
    (5, "app.http*", ("app.*",), ("msgspec", "prometheus_client", "sanic", "uvloop")),
    (4, "app.gateway", ("app.*", *DOORS, "sinks.timescale.*"), ()),
    (3, "app.ingest", ("app.*",), ("msgspec",)),
    (3, "app.replay", ("app.*", "sinks"), ("msgspec",)),
    (3, "app.workspaces_reader", (*VOCABULARY, "adapters"), ()),
    (3, "app.commit", ("app.*", "sinks"), ()),
    (3, "app.drops", ("app.*", "sinks"), ("msgspec",)),
    (3, "app.shares", (*VOCABULARY, "sinks"), ("msgspec",)),
    (2, "app.callbacks", (*VOCABULARY, "app.access"), ()),
    (2, "app.bodies", (*VOCABULARY, "app.apart", "app.redaction"), ()),
    (2, "app.telemetry.observer", (*VOCABULARY, *DOORS), ()),
    (2, "app.telemetry.tracing", ("app.*", *DOORS), ("msgspec", "opentelemetry")),
    (2, "app.claims*", (*VOCABULARY, *COUNTERS, "app.claims*"), ("hiredis", "redis")),
    (2, "sinks*", ("app.dropped", "app.event", *COUNTERS, "sinks*"), ("asyncpg", "msgspec")),
    (2, "adapters", ("app.event", "app.vendor"), ()),
    (2, "adapters*", ("adapters._*", "app.event", "app.normalize"), ("msgspec",)),
    (2, "app.access", VOCABULARY, ()),
    (2, "app.secret_hints", (*VOCABULARY, "app.access"), ()),
    (2, "app.buffer", VOCABULARY, ("msgspec",)),
    (2, "app.workspaces", (*VOCABULARY, *COUNTERS), ("msgspec",)),
    (1, "app.telemetry*", ("app.*",), ("msgspec", "prometheus_client")),
    (0, "app*", VOCABULARY, ("msgspec",)),
]
# Only here are parts made of other parts.
PARTS = {
    "Access", "Drops", "Ingest", "RedisClaims", "TimescaleQuarantine", "TimescaleSink",
    "Workspaces",
}  # fmt: skip
# Below it are the modules that keep connections to callers, Redis and the database.
REQUEST_PATH = (
    "app/http/head.py", "app/http/fast_path.py", "app/http/protocol.py",
    "app/ingest.py", "app/callbacks.py", "app/parameters.py", "app/access.py",
    "adapters/_url.py", "adapters/adjust.py", "app/normalize.py", "app/event.py",
    "app/errors.py", "app/buffer.py", "app/commit.py",
    "app/claims/redis.py", "app/claims/scripts.py", "sinks/timescale/sink.py",
    "sinks/timescale/chunks.py", "sinks/timescale/writes.py", "sinks/timescale/statements.py",
    "sinks/timescale/search.py",
    "sinks/timescale/encoding.py",
)  # fmt: skip


def modules(*folders: str) -> list[str]:
    """The Python files of these folders, as paths from the root."""
    paths = itertools.chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders)
    return sorted(str(path.relative_to(ROOT)) for path in paths)


EVERYWHERE = modules(*PRODUCT, "bench", "tests")
every_product_module = pytest.mark.parametrize("path", modules(*PRODUCT))
every_module = pytest.mark.parametrize("path", EVERYWHERE)


@cache
def tree_of(path: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((ROOT / path).read_text())


def name_of(path: str) -> str:
    """The name under which a file is imported."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


NAMES = {name_of(path) for path in EVERYWHERE}


def imports_of(path: str) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in NAMES else node.module


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is one of those that the patterns allow."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def floor_of(name: str) -> int:
    """The floor on which a room lies."""
    return next(floor for floor, rooms, _, _ in PLAN if fnmatchcase(name, rooms))


@every_product_module
def test_room_imports_only_from_its_floor_and_below(path: str) -> None:
    """Every room imports only the rooms and libraries that the plan of the floors allows."""
    name = name_of(path)
    floor, _, rooms, libraries = next(row for row in PLAN if fnmatchcase(name, row[1]))
    for imported in imports_of(path):
        if imported.partition(".")[0] in PRODUCT:
            assert fits(imported, rooms), f"{name} may not import {imported}"
            assert floor_of(imported) <= floor, f"{imported} is above {name}"
        elif (library := imported.partition(".")[0]) not in sys.stdlib_module_names:
            assert fits(library, libraries), f"{name} may not import {library}"


@every_product_module
def test_parts_are_put_together_in_one_place(path: str) -> None:
    """The parts of a gateway are made in `app.gateway`, and nowhere else."""
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    made = {call.id for call in calls if isinstance(call, ast.Name)} & PARTS
    assert made == (PARTS if path == "app/gateway.py" else set())


IMPORT_ALL = """
import asyncio, importlib, logging, os, signal, sys, threading

def state():
    open_now = (f"/proc/self/fd/{number}" for number in range(3, 100))
    return {
        "threads": threading.active_count(),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "open": [os.readlink(file) for file in open_now if os.path.exists(file)],
        "handlers": [repr(handler) for handler in logging.getLogger().handlers],
        "loops": type(asyncio.get_event_loop_policy()),
        "folder": os.getcwd(),
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
assert before == after, (before, after)
"""


def test_importing_starts_nothing() -> None:
    """Importing a module opens nothing, starts nothing, and changes nothing of the process."""
    names = [name_of(path) for path in modules(*PRODUCT)]
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL, *names]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@every_module
def test_modules_and_functions_are_short(path: str) -> None:
    """A module and a function stay short enough to be read in one go."""
    limit = TEST_MODULE_LINES_MAX if path.startswith("tests/") else MODULE_LINES_MAX
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= limit
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


def test_request_path_is_short() -> None:
    """The request path of a callback can be read in an afternoon."""
    assert sum(code_lines(path) for path in REQUEST_PATH) < REQUEST_PATH_LINES_MAX


def code_lines(path: str) -> int:
    """The number of lines that are neither blank nor comment nor docstring."""
    tree = tree_of(path)
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            assert node.end_lineno is not None
            prose |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate((ROOT / path).read_text().splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in prose
        for number, line in lines
    )


@every_module
def test_no_room_is_for_odds_and_ends(path: str) -> None:
    """No module has a name that would fit everything."""
    assert not FORBIDDEN_ROOMS & set(re.split(r"[/_.]", path))


@every_module
def test_everything_public_has_a_docstring(path: str) -> None:
    """Every module, everything public in the product, and every test begins with a sentence."""
    tree = tree_of(path)
    if not tree.body:
        return
    is_product = path.partition("/")[0] in PRODUCT
    for node in (tree, *named_in(tree)):
        name = getattr(node, "name", path)
        if not name.startswith("_") and (is_product or name.startswith("test")):
            words = ast.get_docstring(node)
            assert words, f"{name} has no docstring"
            assert re.match(r"\S[^\n]*([.?!:]|\n?[^\n]+[.?!:])(\s|$)", words), words


def named_in(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The classes and functions of a module, and the methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (
                m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
            )


CLAUSE = re.compile(r"\b(what|who|whoever|whatever|whichever|whom|whose)\b", re.IGNORECASE)
CLAUSES_MAX = 0.02


def test_docstrings_use_terms_in_place_of_clauses() -> None:
    """Fewer than 2 % of all docstrings hold a clause with what, who, or the like."""
    texts = [
        text
        for path in EVERYWHERE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node))
    ]
    clauses = [text for text in texts if CLAUSE.search(text)]
    assert len(texts) > 1_000
    assert len(clauses) < CLAUSES_MAX * len(texts), clauses


def test_product_is_typed_precisely(tmp_path: Path) -> None:
    """At least 99 % of the product's expressions have a type without Any."""
    command = [sys.executable, "-m", "mypy", "--any-exprs-report", str(tmp_path), *PRODUCT]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    *_, total = (tmp_path / "any-exprs.txt").read_text().splitlines()
    assert float(total.split()[-1].rstrip("%")) >= 99
