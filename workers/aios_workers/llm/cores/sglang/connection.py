"""The way to a server: found or started, watched, mended after a failure, left alone when sick."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from aios_broker.contract.errors import CoreError
from aios_workers.llm.cores.base_core import RestartBudget
from aios_workers.llm.cores.sglang.client import EngineClient, EngineFailure
from aios_workers.llm.cores.sglang.description import Description, describe, gives_original_logprobs
from aios_workers.llm.cores.sglang.server import RESTART_WINDOW_S, EngineServer
from aios_workers.llm.cores.sglang.settings import SGLangConfig

logger = logging.getLogger(__name__)

Circuit = Literal["closed", "open", "half-open"]

DEATH_NOTICE_S = 1.0  # a connection breaks a moment before its process is seen to be dead


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When it opens and for how long."""

    failures: int = 5  # within the window
    window_s: float = 30.0
    open_s: float = 5.0


class CircuitBreaker:
    """A server that keeps failing is left alone for a while, then asked once.

    closed      requests go; too many failures open it
    open        nothing goes, until `open_s` is over
    half-open   one probe goes first: it closes the breaker, or opens it again

    Counts failures by a clock of the caller's; touches nothing itself.
    """

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float]) -> None:
        self.circuit: Circuit = "closed"
        self._policy = policy
        self._clock = clock
        self._failed_at: deque[float] = deque(maxlen=policy.failures)
        self._opened_at = 0.0

    def admit(self) -> Literal["go", "probe"]:
        """Say whether a request may go, or only after a probe of the server has gone well.

        Raises:
            CoreError: The server failed too often, too recently; `retry_after_s` is set.
        """
        if self.circuit == "open":
            wait_s = self._opened_at + self._policy.open_s - self._clock()
            if wait_s > 0:
                raise CoreError(
                    f"the SGLang server failed {self._policy.failures} times within "
                    f"{self._policy.window_s:g} s and is left alone",
                    remedy="see its log",
                    retry_after_s=wait_s,
                )
            self._become("half-open")
        return "go" if self.circuit == "closed" else "probe"

    def succeeded(self) -> None:
        """Note that the server did what it was asked."""
        self._failed_at.clear()
        self._become("closed")

    def probed_well(self) -> None:
        """Note that the server answers. Alone that does not outweigh generations that fail."""
        if self.circuit == "half-open":
            self.succeeded()

    def failed(self) -> None:
        """Note that it did not."""
        now = self._clock()
        self._failed_at.append(now)
        full = len(self._failed_at) == self._policy.failures
        if self.circuit == "half-open" or (
            full and now - self._failed_at[0] <= self._policy.window_s
        ):
            self._opened_at = now
            self._become("open")

    def _become(self, circuit: Circuit) -> None:
        if circuit != self.circuit:
            level = logging.INFO if circuit == "closed" else logging.WARNING
            logger.log(
                level, "circuit breaker of the SGLang server: %s -> %s", self.circuit, circuit
            )
            self.circuit = circuit


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that answers, and what it is."""

    client: EngineClient
    description: Description
    original_logprobs: bool  # those before temperature


class Connection:
    """Keeps one server at hand. After a failure it makes sure that it is still the same one."""

    def __init__(
        self, config: SGLangConfig, environ: Mapping[str, str], breaker: BreakerPolicy
    ) -> None:
        self._config = config
        self._environ = environ
        self._breaker = CircuitBreaker(breaker, asyncio.get_running_loop().time)
        self._restarts = RestartBudget("the SGLang server", RESTART_WINDOW_S)
        self._mending = asyncio.Lock()
        self.engine: Engine | None = None  # the server as it was last found
        self._fingerprint: str | None = None  # of the first server; others are refused
        self._unsure = False  # it failed: it may have been replaced by another
        self.closed = False  # for good
        self.server: EngineServer | None = None  # our own

    async def open(self) -> Engine:
        """Start or find the server. Does nothing when that was done.

        Raises:
            InvalidConfig: The settings or the server's flags do not fit.
            CoreError: The server does not answer, or serves another model.
        """
        async with self._mending:
            try:
                return self.engine or await self._connect()
            except EngineFailure as failure:
                raise failure.to_core_error() from failure

    async def close(self) -> None:
        """End our own server, or leave another's alone. Safe to call twice."""
        self.closed = True
        async with self._mending:
            await self._disconnect()

    async def admitted(self) -> Engine:
        """Return the server when it may be asked; mend it first where that is needed.

        Raises:
            CoreError: It failed too often, cannot be started, or is another one now.
        """
        if self._breaker.admit() == "probe" or self._is_broken():
            await self.health()
        assert self.engine is not None
        return self.engine

    async def health(self) -> None:
        """Return when the server can generate; start our own again if it is down.

        Raises:
            CoreError: It does not answer within the limit, cannot be started, or is another.
        """
        async with self._mending:
            try:
                engine = await self._mended()
                await engine.client.health(limit_s=self._config.health_limit_s)
            except EngineFailure as failure:
                self.note(failure)
                if self.server is not None:  # it hangs; the next call starts another
                    self.server.kill()
                raise failure.to_core_error() from failure
            self._breaker.probed_well()

    def succeeded(self) -> None:
        """Note that the server did what it was asked."""
        self._breaker.succeeded()

    def note(self, failure: EngineFailure) -> None:
        """Note that it did not."""
        logger.warning("SGLang server: %s", failure.message)
        if failure.sick:
            self._unsure = True
            self._breaker.failed()

    async def explain(self, failure: EngineFailure) -> CoreError:
        """Return a generation's error; that of a dead server of ours carries its last words."""
        server = self.server
        if failure.sick and server is not None and await server.died_within(DEATH_NOTICE_S):
            return CoreError(server.died())
        return failure.to_core_error()

    def _is_broken(self) -> bool:
        return self._unsure or self.engine is None or self._own_server_is_dead()

    def _own_server_is_dead(self) -> bool:
        return self.server is not None and self.server.dead

    async def _mended(self) -> Engine:
        if self.closed:
            raise CoreError("the core was closed", remedy="start a new one")
        if self._fingerprint is None:
            raise CoreError("the core is not started", remedy="call start() first")
        own = self._config.url is None
        if self._own_server_is_dead() or (own and self.server is None):
            self._restarts.spend()
            logger.warning("the SGLang server is gone; starting another")
            await self._disconnect()
        elif self._unsure and self.engine is not None:
            engine, self.engine = self.engine, None
            await engine.client.close()
        return self.engine or await self._connect()

    async def _disconnect(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.client.close()
        server, self.server = self.server, None
        if server is not None:
            await server.close()

    async def _connect(self) -> Engine:
        """Start our own server if we have none, read what the server is, and compare."""
        config = self._config
        if config.url is None and self.server is None:
            self.server = await EngineServer.start(config, self._environ)
        url = config.url or (self.server.url if self.server else "")
        client = EngineClient(url, config.api_key)
        try:
            description = describe(
                await client.get("/model_info"), await client.get("/server_info")
            )
            self._check(description)
            original = (
                self.server is not None
                or not description.is_generation
                or await gives_original_logprobs(client)
            )
        except BaseException:
            await client.close()
            raise
        self._fingerprint = description.fingerprint
        self._unsure = False
        self.engine = Engine(client, description, original)
        logger.info("SGLang %s at %s: %s", description.version, url, description.name)
        return self.engine

    def _check(self, found: Description) -> None:
        model = self._config.model
        if model is not None and not found.is_called(model):
            raise CoreError(
                f"the SGLang server serves {found.name!r}, not {model!r}",
                remedy="correct AIOS_SGLANG_MODEL or AIOS_SGLANG_URL",
            )
        if self._fingerprint not in (None, found.fingerprint):
            raise CoreError(
                f"the SGLang server is another now ({found.name}, {found.fingerprint} instead of "
                f"{self._fingerprint})",
                remedy="restart the worker",
            )
