"""Servers of the tests' own: real ones, on private sockets, gone when the tests end."""

import importlib.util
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import pytest_asyncio
import redis

from aios_broker.postgres.database import Database
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.postgres import SUPERUSER, USER, PostgresServer
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from tests.queue_user import QueueUser, queue_user
from tests.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.api_scene import ApiScene
    from tests.doors import Door
    from tests.state_scene import StateScene

TEMPLATE_DATABASE = "aios"
DAY_S, NEAR_S = 86_400, 30
_clone_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--other-python",
        default=sys.executable,
        metavar="PATH",
        help="A Python with our packages that goes on with what this one began (this one).",
    )


@pytest.fixture(scope="session")
def other_python(pytestconfig: pytest.Config) -> str:
    """The Python of processes that go on with what this one began: another, if one was named."""
    path: str = pytestconfig.getoption("--other-python")
    return path


@dataclass(frozen=True, slots=True)
class RunningRedis:
    """The tests' Valkey: its address, and the process for tests that hurt it."""

    server: RedisServer
    process: StandaloneServer

    @property
    def url(self) -> str:
        return self.server.url


@dataclass(frozen=True, slots=True)
class RunningPostgres:
    """The tests' Postgres: a server whose database `aios` is migrated and is cloned per test."""

    server: PostgresServer
    process: StandaloneServer

    def superuser_url(self, database: str) -> str:
        """Return the address of a database for psycopg, as the superuser; no kernel has it."""
        return self.server.libpq_url(database, SUPERUSER)

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser, outside a transaction."""
        with psycopg.connect(self.superuser_url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let the programs that tests start be interrupted, also where the tests run in a background.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers_state() -> Iterator[StateDir]:
    """A state directory for the session's servers, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="aios-tests-") as folder:
        yield StateDir.open(Path(folder))


@pytest.fixture(scope="session")
def redis_server(servers_state: StateDir) -> Iterator[RunningRedis]:
    """A Valkey of this session's own."""
    server = RedisServer.of(servers_state)
    with StandaloneServer(server.service(), servers_state.log_dir / "redis.log") as process:
        yield RunningRedis(server, process)


@pytest.fixture
def redis_url(redis_server: RunningRedis) -> str:
    """The address of an empty Redis: everything in it is the test's own."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.function_flush()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server(servers_state: StateDir) -> Iterator[RunningPostgres]:
    """A Postgres of this session's own, migrated once."""
    server = PostgresServer.of(servers_state, durable=False)
    with ExitStack() as stack:
        stack.callback(server.remove)
        process = stack.enter_context(
            StandaloneServer(server.service(), servers_state.log_dir / "postgres.log")
        )
        if _exists("aios_broker.postgres.migrate"):
            migrations = importlib.import_module("aios_broker.postgres.migrate")
            migrations.upgrade(server.database_url(TEMPLATE_DATABASE))
        yield RunningPostgres(server, process)


@pytest.fixture
def database_url(postgres_server: RunningPostgres) -> Iterator[str]:
    """The address of a migrated, empty database of the test's own (a clone; about 30 ms)."""
    name = f"test_{next(_clone_numbers)}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE_DATABASE} OWNER {USER}")
    yield postgres_server.server.database_url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium; each test opens pages of its own in it (`tests/page_scene.py`).

    Its driver has an event loop of its own in this thread: it is gone before the tests of another
    module, which may need one, run.
    """
    from tests.page_scene import running_browser  # noqa: PLC0415  only these tests need it

    with running_browser() as running:
        yield running


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """One connection to a database of the test's own."""
    database = Database(database_url)
    yield database
    await database.aclose()


@pytest_asyncio.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    """A client, a worker and a scheduler in one, by hand."""
    async with queue_user(redis_url) as user:
        yield user


@pytest_asyncio.fixture
async def scene(redis_url: str, database_url: str) -> AsyncIterator["StateScene"]:
    """Memory, storage and access on these servers, with the real gate."""
    from tests.state_scene import state_scene  # noqa: PLC0415  only some tests need it

    async with state_scene(redis_url, database_url) as opened:
        yield opened


@pytest.fixture
def far_from_midnight() -> None:
    """Begin after midnight (UTC) where it is near: a budget of a day ends with it."""
    wait_until(lambda: time.time() % DAY_S < DAY_S - NEAR_S, 2 * NEAR_S)


@pytest.fixture
def tool_names() -> tuple[str, ...]:
    """The tools that a test's worker has (`tests/tool_scene.py`)."""
    return ()


@pytest.fixture(params=["redis", "http"])
def door(redis_url: str, request: pytest.FixtureRequest) -> Iterator["Door"]:
    """Each way of the SDK to the kernel at `redis_url`, one after the other."""
    from tests.doors import door_of  # noqa: PLC0415  only some tests need it

    with door_of(request.param, redis_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def api(postgres_server: RunningPostgres) -> Iterator["ApiScene"]:
    """A kernel with its HTTP API on a real socket, one for all tests of the session."""
    from tests.api_scene import api_scene  # noqa: PLC0415  only some tests need it

    with api_scene(postgres_server) as opened:
        yield opened
