"""The two ways of the SDK to one kernel: its Redis, and its API with a token.

A test that takes `door` runs once by each; its worker stands on the same Redis.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import redis

from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.tokens import Identity
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.kernel import open_kernel
from aios_kernel_api.server import ApiServer, listen, url_of
from aios_sdk import Agent, AsyncAgent

START_TIMEOUT_S = 10.0
Way = Literal["redis", "http"]


@dataclass
class Door:
    """One way to the kernel at `redis_url`."""

    way: Way
    redis_url: str
    url: str
    _tokens: dict[tuple[str, str], str] = field(default_factory=dict)

    def token(self, agent: str, tenant: str = "default") -> str:
        """Return a token of an agent; by Redis none is needed."""
        if self.way == "redis":
            return ""
        if (tenant, agent) not in self._tokens:
            self._tokens[tenant, agent] = issued(self.redis_url, agent, tenant)
        return self._tokens[tenant, agent]

    def agent(self, name: str, *, tenant: str = "default", **options: Any) -> AsyncAgent:  # noqa: ANN401
        """Return an agent that comes this way, not opened yet."""
        options.setdefault("token", self.token(name, tenant))
        return AsyncAgent(name, url=self.url, tenant=tenant, **options)

    def sync_agent(self, name: str, *, tenant: str = "default", **options: Any) -> Agent:  # noqa: ANN401
        """Return a synchronous agent that comes this way, not opened yet."""
        options.setdefault("token", self.token(name, tenant))
        return Agent(name, url=self.url, tenant=tenant, **options)


def issued(redis_url: str, agent: str, tenant: str = "default") -> str:
    """Return a new token of an agent."""
    token = new_token()
    with redis.Redis.from_url(redis_url) as client:
        client.hset("rq:aios:tokens", digest(token), msgspec.json.encode(Identity(agent, tenant)))
    return token


@contextmanager
def door_of(way: Way, redis_url: str) -> Iterator[Door]:
    """Open a way to the kernel at `redis_url` for the length of a block."""
    if way == "redis":
        yield Door(way, redis_url, redis_url)
        return
    with RunningApi(redis_url) as api:
        yield Door(way, redis_url, api.url)


class RunningApi:
    """One process of the API, in a thread of this one, without a database."""

    def __init__(self, redis_url: str, **settings: Any) -> None:  # noqa: ANN401
        self._config = ApiConfig(redis_url=redis_url, api_drain_s=2.0, **settings)
        self._listening: socket.socket = listen(self._config)
        self.url = url_of(self._listening)
        self._server: ApiServer | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="api")

    def __enter__(self) -> RunningApi:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S), "the API did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop in good order, and return when it has."""
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        async with open_kernel(self._config) as kernel:
            self._server = ApiServer(kernel)
            self._ready.set()
            await self._server.serve([self._listening])
