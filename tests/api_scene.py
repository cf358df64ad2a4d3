"""The HTTP API as strangers meet it: a real kernel with the simulated core, two tenants' tokens.

    def test_it(api: ApiScene) -> None:
        with api.client(api.agent) as client: client.post("/v1/syscalls", json={...})

One kernel serves all tests of a session: a test that needs something of its own takes an agent of
its own (`api.token("its-name")`), and never flushes, stops or suspends what others use.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from aios_broker.access.tokens import put_token, revoke_tokens
from aios_broker.config import KernelConfig
from aios_broker.contract.tokens import digest, new_token
from aios_broker.postgres.store import Store
from aios_broker.process.child import StandaloneServer
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.identity import Scope
from aios_kernel_api.kernel import Kernel, open_kernel
from aios_kernel_api.server import ApiServer, listen, url_of
from aios_local.embedded.postgres import USER
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from aios_local.supervisor.kernel import EmbeddedKernel
from tests.conftest import TEMPLATE_DATABASE, RunningPostgres
from tests.waiting import wait_until_async

ACME = "acme"
GLOBEX = "globex"
TIMEOUT_S = 30.0
DATABASE = "api_tests"
_numbers = itertools.count(1)
T = TypeVar("T")


@dataclass
class ApiScene:
    """A running kernel, and who may come to its API."""

    kernel: EmbeddedKernel
    redis_url: str
    database_url: str
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address of the API."""
        assert self.kernel.api_url is not None
        return self.kernel.api_url

    # Those that are always there.

    @property
    def agent(self) -> str:
        """The token of agent `ada` of tenant `acme`."""
        return self._fixed("ada", ACME, "agent")

    @property
    def colleague(self) -> str:
        """The token of agent `bob` of tenant `acme`."""
        return self._fixed("bob", ACME, "agent")

    @property
    def administrator(self) -> str:
        """The token of agent `boss`, an administrator of tenant `acme`."""
        return self._fixed("boss", ACME, "administrator")

    @property
    def foreigner(self) -> str:
        """The token of agent `eve` of tenant `globex`."""
        return self._fixed("eve", GLOBEX, "agent")

    @property
    def foreign_administrator(self) -> str:
        """The token of agent `chief`, an administrator of tenant `globex`."""
        return self._fixed("chief", GLOBEX, "administrator")

    @property
    def operator(self) -> str:
        """The token of an operator."""
        return self._fixed("operator:olga", "", "operator")

    @property
    def expired(self) -> str:
        """A token of agent `ada` that is over."""
        if "expired" not in self.tokens:
            self.tokens["expired"] = self.token("ada", ttl_s=-60.0)
        return self.tokens["expired"]

    @property
    def revoked(self) -> str:
        """A token of agent `zoe` of tenant `acme` that was taken back."""
        if "revoked" not in self.tokens:
            self.tokens["revoked"] = self.token("zoe")
            self.revoke("zoe")
        return self.tokens["revoked"]

    def _fixed(self, agent: str, tenant: str, scope: Scope) -> str:
        if agent not in self.tokens:
            self.tokens[agent] = self.token(agent, tenant, scope=scope)
        return self.tokens[agent]

    # What a test asks for.

    def token(
        self,
        agent: str | None = None,
        tenant: str = ACME,
        *,
        scope: Scope = "agent",
        ttl_s: float | None = None,
    ) -> str:
        """Return a new token of an agent; None: one that nobody else uses."""
        name = agent or f"agent-{os.getpid()}-{next(_numbers)}"
        return run(self._issue(name, tenant, scope, ttl_s))

    def revoke(self, agent: str, tenant: str = ACME) -> None:
        """Take back all tokens of an agent: in the database first, from where Redis gets them."""

        async def work() -> None:
            async with aclosing(Store(self.database_url)) as store:
                whose = await store.vouched(agent, tenant)
                async with store.as_steward() as cursor:
                    await revoke_tokens(cursor, whose.id)
            async with aclosing(Connection(self.redis_url)) as connection:
                await Tokens(connection).revoke_all(agent, tenant)

        run(work())

    def client(self, token: str | None, **options: Any) -> httpx.Client:  # noqa: ANN401
        """Return a client of the API with this token; None: without one."""
        return httpx.Client(base_url=self.url, headers=bearer(token), timeout=TIMEOUT_S, **options)

    def async_client(self, token: str | None, **options: Any) -> httpx.AsyncClient:  # noqa: ANN401
        """Return the same for an event loop."""
        return httpx.AsyncClient(
            base_url=self.url, headers=bearer(token), timeout=TIMEOUT_S, **options
        )

    async def _issue(self, agent: str, tenant: str, scope: Scope, ttl_s: float | None) -> str:
        token = new_token()
        expires_at = None if ttl_s is None else time.time() + ttl_s
        is_operator = scope == "operator"
        identity = Identity(agent, tenant, expires_at, "operator" if is_operator else "agent")
        if not is_operator:
            async with aclosing(Store(self.database_url)) as store:
                whose = await store.vouched(agent, tenant)
                async with store.as_steward() as cursor:
                    await put_token(cursor, whose.id, digest(token), ttl_s)
                    if scope == "administrator":
                        await cursor.execute(
                            "UPDATE agent SET administrator = true WHERE id = %s", (whose.id,)
                        )
        async with aclosing(Connection(self.redis_url)) as connection:
            await Tokens(connection).put(digest(token), identity)
        return token


@dataclass(frozen=True, slots=True)
class ServedApi:
    """One more API, in the test's own loop."""

    url: str
    kernel: Kernel
    server: ApiServer


@asynccontextmanager
async def serving(
    redis_url: str,
    database_url: str | None = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[ServedApi]:
    """Serve a kernel by an API in this loop, with settings of its own; stop it in order."""
    config = ApiConfig(redis_url=redis_url, database_url=database_url, **settings)
    listening = listen(config)
    url = url_of(listening)
    async with open_kernel(config) as kernel:
        server = ApiServer(kernel)
        task = asyncio.create_task(server.serve_without_signals(listening))
        await wait_until_async(lambda: server.started)
        try:
            yield ServedApi(url, kernel, server)
        finally:
            server.should_exit = True
            await task


def bearer(token: str | None) -> dict[str, str]:
    """Return the headers that carry a token."""
    return {} if token is None else {"authorization": f"Bearer {token}"}


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from anywhere, also from within an event loop."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work)))
    thread.start()
    thread.join()
    return found[0]


@contextmanager
def api_scene(postgres_server: RunningPostgres, **settings: str) -> Iterator[ApiScene]:
    """Run a kernel for the length of a block: a Redis and a database of its own."""
    postgres_server.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    postgres_server.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {TEMPLATE_DATABASE} OWNER {USER}")
    database_url = postgres_server.server.database_url(DATABASE)
    with tempfile.TemporaryDirectory(prefix="aios-api-") as folder:
        state = StateDir.open(Path(folder) / "redis")
        redis = RedisServer.of(state)
        with StandaloneServer(redis.service(), state.log_dir / "redis.log"):
            config = KernelConfig(
                state_dir=Path(folder) / "kernel",
                redis_url=redis.url,
                database_url=database_url,
                llm_core="simulated",
                llm_slots=8,
            )
            environ = {
                **os.environ,
                "AIOS_LLM_CONTEXT_TOKENS": "16384",
                "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "200",
                "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
                **settings,
            }
            with EmbeddedKernel(config, inherited=environ) as kernel:
                yield ApiScene(kernel, redis.url, database_url)
    postgres_server.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
