"""What the API process holds open: one client of the kernel, its Redis, its database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.requests import Request

from aios_broker.client.pending import Pending
from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Limits, Session
from aios_broker.contract.errors import Cancelled, NotConfigured, UnknownSyscall
from aios_broker.contract.names import Module, Owner
from aios_broker.postgres.database import Database
from aios_broker.postgres.store import Store
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.quota import Quotas
from aios_broker.queues.records import JobView
from aios_broker.queues.tokens import Tokens
from aios_broker.redis.connection import Connection
from aios_broker.retry import patiently
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.large_work import LargeWork
from aios_kernel_api.room import OpenAnswers, Room
from aios_kernel_api.router import Router
from aios_kernel_api.stats import ApiStats

LINKS_AT_ONCE = 4
MOST_ANSWER_BYTES = 256 * 1024 * 1024  # of answers that are made or read, together
NAME = "aios-api"  # what CLIENT LIST and pg_stat_activity show


@dataclass(frozen=True, slots=True)
class Found:
    """A syscall as the kernel has it: live, or ended with its reply."""

    state: str
    live: JobView | None = None
    reply: bytes | None = None  # encoded; there once it has ended


@dataclass(frozen=True, slots=True)
class Kernel:
    """One process's hold on the kernel, shared by all of its requests.

    `stopping` is set when the process is told to stop: what can be resumed elsewhere ends then, all
    else goes on. `leaving` is set a moment before what is left is cut.
    """

    config: ApiConfig
    session: Session
    transport: RedisTransport
    functions: Functions
    keys: Keys
    store: Store | None  # None: a kernel without a database
    database: Database | None
    room: Room  # for bodies that are being read
    router: Router  # of what comes for clients with a session
    stopping: asyncio.Event
    # Links are read for whoever comes: a few at a time.
    link_places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LINKS_AT_ONCE))
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    large_work: LargeWork = field(default_factory=LargeWork)  # of all requests
    answers: OpenAnswers = field(default_factory=lambda: OpenAnswers(Room(MOST_ANSWER_BYTES)))
    stats: ApiStats = field(default_factory=ApiStats)

    @property
    def needed_store(self) -> Store:
        """What is stored; raise NotConfigured where the kernel has no database."""
        if self.store is None:
            raise no_database()
        return self.store

    @property
    def needed_database(self) -> Database:
        """The ledger; raise NotConfigured where the kernel has no database."""
        if self.database is None:
            raise no_database()
        return self.database

    @property
    def connection(self) -> Connection:
        """The connection for commands that do not block."""
        return self.functions.connection

    @property
    def control(self) -> Control:
        """What operators do with syscalls."""
        return Control(self.functions, self.keys)

    @property
    def fleet(self) -> Fleet:
        """What the processes of the kernel say of themselves."""
        return Fleet(self.connection, self.keys)

    @property
    def quotas(self) -> Quotas:
        """What agents and tenants use and may use."""
        return Quotas(self.functions, self.keys)

    @property
    def tokens(self) -> Tokens:
        """Whose each token is."""
        return Tokens(self.connection, self.keys)

    @contextmanager
    def holding(self, pending: Pending) -> Iterator[None]:
        """Count as one who waits for a syscall; when nobody does any more, it goes on unheard.

        Whoever gives a syscall up instead calls `session.leave(pending, abandon=True)` for a wait
        that it counted itself (`pending.waiters += 1`).
        """
        pending.waiters += 1
        try:
            yield
        finally:
            pending.waiters -= 1
            if not pending.waiters:
                self.session.let_go(pending)

    def metrics(self) -> Iterator[Metric]:
        """Yield what this process has served and holds; read from another thread."""
        yield from self.stats.metrics()
        for name, text, value in (
            ("sessions", "Clients that have a session here.", self.router.sessions),
            ("session_bytes", "Messages that clients have not taken.", self.router.waiting_bytes),
            ("syscalls", "Syscalls that this process waits for.", self.session.waiting),
            ("body_bytes", "Bodies of requests that are being read.", self.room.taken_bytes),
            ("answer_bytes", "Answers that clients are to read.", self.answers.room.taken_bytes),
        ):
            yield GaugeMetricFamily(f"aios_api_{name}", text, value=value)

    async def find(self, syscall_id: str, owner: Owner | None) -> Found:
        """Return a syscall; nobody waits for it by that. `owner`: who asks; None: an operator.

        Raises:
            UnknownSyscall: there is none of that id, it is another agent's, or its reply expired.
        """
        live = await self.control.job(syscall_id)
        if live is not None and owner in (None, live.metadata.owner):
            return Found(live.state, live)
        return await self.find_ended(syscall_id, owner)

    async def find_ended(self, syscall_id: str, owner: Owner | None) -> Found:
        """Return a syscall that is not among those that have not ended; raise as `find` does."""
        # What ended is in no module's queue.
        queue = ModuleQueue(self.functions, "llm", self.keys)
        state, reply = await queue.attach(syscall_id, "", owner)
        if state == "unknown":
            raise UnknownSyscall(
                "the kernel knows no such syscall of yours, or its reply has expired",
                field="id",
                remedy=f"replies are kept for {self.transport.result_ttl_s:g} s; submit it anew",
            )
        return Found(state, None, reply)

    async def cancel(self, syscall_id: str, module: Module, owner: Owner | None) -> None:
        """End a syscall; one that has ended stays as it is."""
        reason = Cancelled("it was cancelled by the API")
        await self.transport.cancel([syscall_id], module, reason, owner)


def no_database() -> NotConfigured:
    """Return the error of what a kernel without a database cannot show."""
    return NotConfigured(
        "this kernel keeps no database: it knows nothing of what lasts",
        field="AIOS_DATABASE_URL",
        remedy="have its operator name one to the API, and start it anew",
    )


def kernel_of(request: Request) -> Kernel:
    """Return the kernel that a request is for."""
    kernel: Kernel = request.app.state.kernel
    return kernel


@asynccontextmanager
async def open_kernel(config: ApiConfig) -> AsyncIterator[Kernel]:
    """Reach the kernel for the length of a block.

    Raises:
        Unavailable: its Redis does not answer.
    """
    keys = Keys(config.key_prefix)
    transport = RedisTransport(config.redis_url, "api", keys)
    limits = Limits(patience_s=config.api_patience_s)
    # At the start of a fleet it may be there before Redis, or before a scheduler.
    await patiently(transport.open, config.api_patience_s)
    async with AsyncExitStack() as at_end:
        session = await at_end.enter_async_context(Session(transport, limits))
        connection = Connection(config.redis_url, name=NAME)
        at_end.push_async_callback(connection.aclose)
        store, database = None, None
        if config.database_url is not None:
            folder = config.audit_folder
            key = None if folder is None else folder.made_key()
            store = Store(config.database_url, name=NAME, audit_key=key)
            database = Database(config.database_url, name=NAME)
            await at_end.enter_async_context(aclosing(store))
            await at_end.enter_async_context(aclosing(database))
        stopping = asyncio.Event()
        router = Router(RedisTransport(config.redis_url, "api-sessions", keys), stopping)
        await at_end.enter_async_context(router.running())
        yield Kernel(
            config,
            session,
            transport,
            Functions(connection),
            keys,
            store,
            database,
            Room(config.api_max_body_bytes),
            router,
            stopping,
        )
