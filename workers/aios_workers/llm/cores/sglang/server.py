"""An SGLang server that the worker owns: started, watched, and ended with the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_broker.process.child import SHIM
from aios_workers.llm.cores.sglang.client import EngineClient, EngineFailure
from aios_workers.llm.cores.sglang.settings import SGLangConfig

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
RESTART_WINDOW_S = 600.0
STOP_LIMIT_S = 10.0
POLL_S = 0.25
LAST_WORDS_BYTES = 2_000
# Log-probabilities are to be the model's own, before temperature.
_ENVIRONMENT = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1", "PYTHONUNBUFFERED": "1"}


class EngineServer:
    """One running server process with its children, in a session of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log_path: Path) -> None:
        self._process = process
        self.url = url
        self.log_path = log_path

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
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *_command(config, port),
                env={**environ, **_ENVIRONMENT},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        server = cls(process, f"http://{HOST}:{port}", log_path)
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
        code = self._process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
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
            raise CoreError(self.died(), remedy="see AIOS_SGLANG_FLAGS and its log")
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
        return " | ".join(line.strip() for line in lines[-12:] if line.strip())


def _command(config: SGLangConfig, port: int) -> list[str]:
    assert config.model is not None
    python = Path(config.python)
    if not os.access(python, os.X_OK) or python.is_dir():
        raise InvalidConfig(
            f"there is no Python at {config.python!r}",
            field="AIOS_SGLANG_PYTHON",
            remedy="name the Python of an environment that has sglang",
        )
    key = ["--api-key", config.api_key] if config.api_key else []
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
