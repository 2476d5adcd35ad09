"""The foundation of the tests: a real database, a real Redis, and gateways on them."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import coverage
import pytest
import uvloop
from hypothesis import settings
from sanic import Sanic
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from app.claims.redis import RedisClaims
from app.dev import embedded
from app.dev import programs as embedded_programs
from app.telemetry.exposition import exposition
from bench.testbed.haproxy import find_haproxy
from bench.topologies.maker import Maker, making
from bench.topologies.pair import Pair, open_pair
from sinks.timescale.schema import migrate
from sinks.timescale.sink import TimescaleSink
from tests import leaks, redis_topologies
from tests.events import make_chunks
from tests.gateways import (
    SECRET,
    Gateways,
    Process,
    Services,
    database_of,
    environment,
    make_claims,
    workspaces_toml,
)
from tests.replays import Replays
from tests.vectors import VECTORS, app_token

# A machine that is busy may take its time.
settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")
Sanic.test_mode = True  # several applications of one name in one process

SERVERS = {"services", "redis_program", "postgres_programs"}
UNIT = Path(__file__).parent / "unit"
_TEMPLATE = f"gateway_template_{os.getpid()}"
# Load on the whole machine: one at a time, and first because they take longest.
LOAD = [
    f"tests/{name}.py"
    for name in (
        "services/test_bench", "services/test_capacity", "services/test_curves",
        "adversity/test_faults", "adversity/test_neighbours", "adversity/test_overload",
        "adversity/test_rolling", "papers/test_monitoring",
    )
]  # fmt: skip
_numbers = itertools.count(1)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of the product."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def services(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Services]:
    """The servers of DATABASE_URL and REDIS_URL, or else embedded ones."""
    addresses = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    if addresses[0] and addresses[1]:
        found = Services(addresses[0], addresses[1], "servers of DATABASE_URL and REDIS_URL")
        request.config.stash[SERVICES] = found.description
        yield found
        request.config.stash[LEAKS] += asyncio.run(leaks.in_redis(found.redis_url, SECRET))
        return
    with embedded.start(tmp_path_factory.mktemp("services")) as servers:
        request.config.stash[SERVICES] = servers.description
        yield Services(servers.database_url, servers.redis_url, servers.description)
        request.config.stash[LEAKS] += asyncio.run(leaks.in_redis(servers.redis_url, SECRET))


@pytest.fixture(scope="session")
def redis_program() -> Path:
    """The `redis-server` to make clusters and the like of."""
    return embedded_programs.find().redis_server


@pytest.fixture(scope="session")
def redis_six(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, redis_program: Path
) -> Iterator[redis_topologies.Cluster]:
    """A Redis Cluster of six, as the test before has left it."""
    with redis_topologies.cluster(tmp_path_factory.mktemp("cluster"), redis_program) as cluster:
        yield cluster
        asyncio.run(cluster.mend())
        for url in map(redis_topologies.url_of, asyncio.run(cluster.primaries())):
            request.config.stash[LEAKS] += asyncio.run(leaks.in_redis(url, SECRET))


@pytest.fixture
async def redis_cluster(redis_six: redis_topologies.Cluster) -> redis_topologies.Cluster:
    """A Redis Cluster of six, whole."""
    await redis_six.mend()
    return redis_six


@pytest.fixture(scope="session")
def redis_five(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, redis_program: Path
) -> Iterator[redis_topologies.Watched]:
    """A Redis, its replica and three Sentinels, as the test before has left them."""
    with redis_topologies.watched(tmp_path_factory.mktemp("watched"), redis_program) as watched:
        yield watched
        asyncio.run(watched.mend())
        for url in map(redis_topologies.url_of, watched.servers):
            request.config.stash[LEAKS] += asyncio.run(leaks.in_redis(url, SECRET))


@pytest.fixture
async def redis_watched(redis_five: redis_topologies.Watched) -> redis_topologies.Watched:
    """A Redis and its replica, which three Sentinels watch, all well."""
    await redis_five.mend()
    return redis_five


@pytest.fixture(scope="session")
def postgres_programs() -> embedded_programs.Programs:
    """The PostgreSQL to make standbys and the like of."""
    return embedded_programs.find()


@pytest.fixture(scope="session")
def postgres_pair(
    tmp_path_factory: pytest.TempPathFactory, postgres_programs: embedded_programs.Programs
) -> Iterator[Pair]:
    """A PostgreSQL and its synchronous standby, as the test before has left them."""
    with open_pair(tmp_path_factory.mktemp("pair"), postgres_programs) as pair:
        yield pair


@pytest.fixture
async def pair(postgres_pair: Pair) -> AsyncIterator[Pair]:
    """A primary and a synchronous standby, both well."""
    await postgres_pair.mend()
    yield postgres_pair
    # A gateway that is still there would wait for it to the end.
    postgres_pair.standby.resume()


@pytest.fixture(scope="module")
def maker(
    tmp_path_factory: pytest.TempPathFactory, postgres_programs: embedded_programs.Programs
) -> Iterator[Maker]:
    """The maker of PostgreSQL servers, which end with the module."""
    with making(tmp_path_factory.mktemp("made"), postgres_programs) as maker:
        yield maker


@pytest.fixture(scope="session")
def haproxy_program() -> Path:
    """The HAProxy to run."""
    try:
        return find_haproxy()
    except embedded.EmbeddedError as why:
        pytest.skip(str(why))


SERVICES = pytest.StashKey[str]()
LEAKS = pytest.StashKey[list[str]]()


class ByFile(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """A worker of `pytest --numprocesses` runs whole files; one worker runs all of LOAD."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "load" if file in LOAD else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Distribute the tests in the order in which they are collected."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Take over the findings of a worker, unless it crashed."""
    output: dict[str, Any] = getattr(node, "workeroutput", {})
    node.config.stash[LEAKS] += output.get("leaks", [])
    if description := output.get("services"):
        node.config.stash[SERVICES] = description


def pytest_configure(config: pytest.Config) -> None:
    """Keep the places that hold the secret, all through the run."""
    config.stash[LEAKS] = []
    # A shell ignores it in the background, and processes of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Stop the second measurement too that pytest-cov has in a worker: `no_cover` stops one."""
    left = coverage.Coverage.current() if item.get_closest_marker("no_cover") else None
    if left:
        left.stop()
    try:
        yield
    finally:
        if left:
            left.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Search the output and log of each test for the secret."""
    report = yield
    if report.when == "teardown":  # by now it holds that of the other phases too
        item.config.stash[LEAKS] += leaks.in_report(report, SECRET)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search all output of the run for the secret; a place that holds it fails the run.

    These are the logs of gateways and servers, and the servers' own files, so also rows of
    tables that are dropped by now.
    """
    config = session.config
    found = config.stash[LEAKS]
    if SECRET.encode() in asyncio.run(exposition()):
        found.append("the metrics of the gateways in this process")
    if isinstance(output := getattr(config, "workeroutput", None), dict):
        output |= {"leaks": found, "services": config.stash.get(SERVICES, "")}
        return  # the files of all workers lie in the folder of their parent
    found += leaks.in_files(config._tmp_path_factory.getbasetemp(), SECRET)  # type: ignore[attr-defined]
    if found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Report in the last lines the servers that the tests ran on, and the leaks."""
    for place in config.stash[LEAKS]:
        terminalreporter.write_line(f"LEAKED: the secret stands in {place}", red=True)
    if exitstatus != pytest.ExitCode.INTERRUPTED:  # where workers report nothing
        terminalreporter.write_line(f"services: {config.stash.get(SERVICES, 'none were needed')}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs the servers; a unit test needs none. Put LOAD first."""
    items.sort(key=lambda item: item.location[0] not in LOAD)
    for item in items:
        if item.location[0] in LOAD:
            item.add_marker("no_cover")  # nor are the processes of such a test slowed down
        if SERVERS.intersection(getattr(item, "fixturenames", ())):
            if UNIT in item.path.parents:
                raise pytest.UsageError(f"{item.nodeid} needs servers: it is no unit test")
            item.add_marker("services")


@pytest.fixture(scope="session")
def template(services: Services) -> Iterator[str]:
    """A migrated database, to be copied: a copy takes a tenth of the time of a migration."""

    async def make() -> None:
        await services.execute(None, f"CREATE DATABASE {_TEMPLATE}")
        connection = await asyncpg.connect(services.url_of(_TEMPLATE))
        await migrate(connection)
        await make_chunks(connection)
        await connection.close()
        # A database with connections cannot be copied, and TimescaleDB's scheduler
        # connects to every one that it can.
        await services.execute(
            None,
            f"ALTER DATABASE {_TEMPLATE} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{_TEMPLATE}'",
        )

    asyncio.run(make())
    yield _TEMPLATE
    asyncio.run(services.execute(None, f"DROP DATABASE {_TEMPLATE} WITH (FORCE)"))


@pytest.fixture
async def database_url(services: Services, template: str) -> AsyncIterator[str]:
    """An empty, migrated database of the test's own."""
    name = f"gateway_test_{os.getpid()}_{next(_numbers)}"
    await services.execute(None, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield services.url_of(name)
    leaking = await leaks.in_database(services.url_of(name), SECRET)
    await services.execute(None, f"DROP DATABASE {name} WITH (FORCE)")
    assert not leaking, f"the secret stands in {leaking}"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[TimescaleSink]:
    """The sink on the test's database, connected."""
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    await sink.ping()
    yield sink
    await sink.close()


@pytest.fixture
async def claims(
    services: Services, sink: TimescaleSink, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisClaims]:
    """Claims of one process, with much patience for a busy machine."""
    monkeypatch.setattr("app.claims.time_limit.CLAIM_TIMEOUT_S", 5.0)
    claims = make_claims(services, sink)
    yield claims
    await claims.close()


@pytest.fixture
async def gateways(
    services: Services, database_url: str, tmp_path: Path
) -> AsyncIterator[Gateways]:
    """Gateways in this process, on the test's database."""
    gateways = Gateways(database_url, services.redis_url, tmp_path)
    yield gateways
    await gateways.stop()


@pytest.fixture
def replays(services: Services, database_url: str, tmp_path: Path) -> Replays:
    """The command `replay` on the test's database, with much patience for a busy machine."""
    patience = {"COMMIT_TIMEOUT_S": "20", "CLAIM_LEASE_S": "40"}
    return Replays(environment(database_url, services.redis_url, tmp_path, **patience))


@pytest.fixture
def run(services: Services, database_url: str, tmp_path: Path) -> Callable[..., Process]:
    """Make a gateway process on the test's database; `with` starts and stops it."""
    return partial(Process, database_url, services.redis_url, tmp_path)


@pytest.fixture(scope="session")
def server(
    services: Services, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A gateway as a process of its own, for tests that change nothing that others see."""
    folder = tmp_path_factory.mktemp("server")
    tokens = [app_token(vector["id"]) for vector in VECTORS]
    (folder / "workspaces.toml").write_text(workspaces_toml("abc123token", *tokens))
    with (
        database_of(services, template, "server") as url,
        Process(url, services.redis_url, folder) as process,
    ):
        process.wait_until_ready()
        yield process
