"""The way to a server: found or started, watched, mended after a failure, left alone when sick."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_broker.process.child import SHIM
from aios_workers.llm.cores.base_core import (
    MAX_RESTARTS,
    CircuitBreaker,
    FailureLimit,
    how_it_ended,
)
from aios_workers.llm.cores.sglang.client import (
    Description,
    EngineClient,
    EngineFailure,
    describe,
    gives_original_logprobs,
)
from aios_workers.llm.cores.sglang.settings import SGLangConfig

logger = logging.getLogger(__name__)

# Of requests to a server, its probes among them.
REQUESTS = FailureLimit(failures=5, window_s=30.0, rest_s=5.0)
HOST = "127.0.0.1"
RESTARTS = FailureLimit(MAX_RESTARTS, window_s=600.0, rest_s=600.0)  # of our own server
STOP_LIMIT_S = 10.0
POLL_S = 0.25
LAST_WORDS_BYTES = 2_000
# Log-probabilities are to be the model's own, before temperature.
_ENVIRONMENT = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1", "PYTHONUNBUFFERED": "1"}
NO_SGLANG = "No module named 'sglang'"  # how Python says it
GET_SGLANG = "`pip install` of the wheel with [sglang-server] brings it"
DEATH_NOTICE_S = 1.0  # a connection breaks a moment before its process is seen to be dead


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that answers, and what it is."""

    client: EngineClient
    description: Description
    original_logprobs: bool  # those before temperature


class Connection:
    """Keeps one server at hand. After a failure it makes sure that it is still the same one."""

    def __init__(
        self, config: SGLangConfig, environ: Mapping[str, str], failures: FailureLimit
    ) -> None:
        self._config = config
        self._environ = environ
        self._breaker = CircuitBreaker("the SGLang server", failures)
        self._restarts = CircuitBreaker("the SGLang server", RESTARTS)
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
        self._breaker.check()
        if self._is_broken():  # as it is after each failure: its health is asked for first
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
            self._restarts.check()
            self._restarts.failed()
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


class EngineServer:
    """One running server process with its children, in a session of its own."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        url: str,
        log_path: Path,
        api_key: str | None = None,
    ) -> None:
        self._process = process
        self.url = url
        self.log_path = log_path
        self._api_key = api_key

    @classmethod
    async def start(cls, config: SGLangConfig, environ: Mapping[str, str]) -> EngineServer:
        """Start a server and return when it can generate.

        The server's main process is killed by the operating system when this one ends, however
        it ends; its own children end with it.

        Raises:
            InvalidConfig: There is no such Python.
            CoreError: It died, or was not healthy within the limit; with its last words.
        """
        port = _free_port()
        log_path = config.log_path or _new_log()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with _key_arguments(config) as key:
            with log_path.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *_command(config, port, key),
                    env={**environ, **_ENVIRONMENT},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            server = cls(process, f"http://{HOST}:{port}", log_path, config.api_key)
            logger.info(
                "SGLang server %d starts on %s, its log is %s", server.pid, server.url, log_path
            )
            try:
                await server._wait_until_healthy(config)
            except BaseException:
                await server.close()
                raise
        return server

    @property
    def pid(self) -> int:
        """The operating system's number of the main process, and of its session."""
        return self._process.pid

    @property
    def dead(self) -> bool:
        """Whether the main process has ended."""
        return self._process.returncode is not None

    def died(self) -> str:
        """Say how it ended, with its last words."""
        how = how_it_ended(self._process.returncode)
        return f"the SGLang server died {how}; the end of {self.log_path}: {self._last_words()}"

    async def died_within(self, seconds: float) -> bool:
        """Wait for its end, so long at most; say whether it has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self.dead

    async def close(self) -> None:
        """End it and all its children. Safe to call twice."""
        if not self.dead:
            self._signal(signal.SIGTERM)
            await self.died_within(STOP_LIMIT_S)
        self._signal(signal.SIGKILL)  # what has outlived the main process, too
        await self._process.wait()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._signal(signal.SIGKILL)

    async def _wait_until_healthy(self, config: SGLangConfig) -> None:
        client = EngineClient(self.url, config.api_key)
        try:
            async with asyncio.timeout(config.start_limit_s):
                while not await self.died_within(POLL_S):
                    with contextlib.suppress(EngineFailure):  # not yet
                        return await client.health(limit_s=5.0)
            died = self.died()
            remedy = GET_SGLANG if NO_SGLANG in died else "see AIOS_SGLANG_FLAGS and its log"
            raise CoreError(died, remedy=remedy)
        except TimeoutError as error:
            raise CoreError(
                f"the SGLang server was not healthy within {config.start_limit_s:g} s; the end of "
                f"{self.log_path}: {self._last_words()}",
                remedy="see its log",
            ) from error
        finally:
            await client.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _last_words(self) -> str:
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
                lines = log.read().decode("utf-8", "replace").split("\n")
        except OSError as error:
            return f"(cannot be read: {error})"
        words = " | ".join(line.strip() for line in lines[-12:] if line.strip())
        # It may show its settings; its log is for this user alone, where the words go is not known.
        return words.replace(self._api_key, "(its key)") if self._api_key else words


@contextmanager
def _key_arguments(config: SGLangConfig) -> Iterator[list[str]]:
    """Give the arguments by which a server reads its key, for as long as it starts.

    From a file that this user alone can read: everybody here sees the arguments themselves.
    """
    if not config.api_key:
        yield []
        return
    file, name = tempfile.mkstemp(prefix="aios-sglang-", suffix=".yaml")
    try:
        with os.fdopen(file, "w", encoding="utf-8") as written:
            json.dump({"api-key": config.api_key}, written)  # all JSON is YAML
        yield ["--config", name]
    finally:
        Path(name).unlink(missing_ok=True)


def _command(config: SGLangConfig, port: int, key: Sequence[str]) -> list[str]:
    assert config.model is not None
    python = Path(config.python)
    if not os.access(python, os.X_OK) or python.is_dir():
        raise InvalidConfig(
            f"there is no Python at {config.python!r}",
            field="AIOS_SGLANG_PYTHON",
            remedy=f"name the Python of an environment that has sglang; {GET_SGLANG}",
        )
    return [
        *(sys.executable, "-I", "-S", str(SHIM)),
        *(str(os.getpid()), str(int(signal.SIGKILL)), "same"),
        *(str(python), "-m", "sglang.launch_server", "--model-path", config.model),
        *("--log-level-http", "warning"),
        *config.flags,
        *("--host", HOST, "--port", str(port), *key),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _new_log() -> Path:
    """Make a file that nobody could have put there before us."""
    descriptor, name = tempfile.mkstemp(prefix="aios-sglang-", suffix=".log")
    os.close(descriptor)
    return Path(name)
