"""llama.cpp's own HTTP server, of the pinned xllamacpp package, in a process that may be killed.

    python -m tests.llama_server FILE SLOTS CONTEXT_TOKENS PORT

It serves until its standard input ends, with its own settings and one thread.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = "served"  # the server answers under any name
_LISTENING = b"listening "


class LlamaServer:
    """One server. After `kill` it can be started again, at the same address."""

    def __init__(self, gguf: Path, *, slots: int = 2, context_tokens: int = 1_024) -> None:
        self._arguments = (str(gguf), str(slots), str(context_tokens))
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        """Where its own interface is."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Where its OpenAI-compatible interface is."""
        return f"{self.root}/v1"

    def start(self) -> None:
        """Return when it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.llama_server", *self._arguments, str(self._port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_LISTENING):
                return
        raise RuntimeError(f"llama.cpp's server did not start: exit code {self._process.wait()}")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @contextmanager
    def running(self) -> Iterator[LlamaServer]:
        """Serve for the length of a block."""
        self.start()
        try:
            yield self
        finally:
            self.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve(gguf: str, slots: int, context_tokens: int, port: int) -> None:
    """Be the server until standard input ends."""
    import xllamacpp  # noqa: PLC0415  loads llama.cpp, in the child alone

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx = slots, slots * context_tokens
    params.kv_unified = False
    params.port = port
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{_LISTENING.decode()}{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
