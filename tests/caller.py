"""A client and a worker for tests, on the queues alone: no SDK, no supervisor, no scheduler.

The client speaks the protocol by hand, on purpose: it keeps every message as it came and fails on a
second reply, which the product's client would drop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aios_broker.client.redis_transport import ReplyBox
from aios_broker.contract.job import encode_job
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.names import Module
from aios_broker.contract.reply import ChatResult, Chunk, Reply, decode_wire
from aios_broker.contract.syscall import Body, Need, Syscall, new_id
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import JobMetadata, PolicyRow, Submission
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from aios_workers.runtime.loop import Limits, Worker, WorkerSpec
from aios_workers.runtime.registry import LoadedModule, open_worker
from tests.conftest import RunningRedis
from tests.queue_user import submitted

TIMEOUT_S = 20.0
LIMITS = Limits(lease_s=2.0, drain_s=3.0)
ROOT = Path(__file__).resolve().parents[1]
_numbers = itertools.count(1)


def chat(text: str, **options: object) -> LlmChat:
    """Return a chat syscall's body that also returns its ids."""
    values: dict[str, object] = {"return_ids": True, **options}
    return LlmChat((Message("user", text),), **values)  # type: ignore[arg-type]


class Caller:
    """Submits syscalls and hears the replies."""

    patience_s = TIMEOUT_S  # until a reply has to be there

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = Connection(url)
        self.functions = Functions(self.connection)
        self.control = Control(self.functions)
        self.tokens = Tokens(self.connection)
        self.chunks: dict[str, list[Chunk]] = {}
        self.replies: dict[str, list[Reply]] = {}
        self._client = f"test.{next(_numbers)}.{new_id()[:6]}"
        self._box = ReplyBox(Connection(url), self._client)

    async def token(self, agent: str) -> str:
        """Return a new token of an agent."""
        token = new_token()
        await self.tokens.put(digest(token), Identity(agent))
        return token

    def queue(self, module: Module) -> ModuleQueue:
        """Return a module's queue."""
        return ModuleQueue(self.functions, module)

    async def submit(
        self,
        *bodies: Body,
        deadline_s: float = 60.0,
        tenant: str = "default",
        agent: str = "ada",
        needs: tuple[Need, ...] | None = None,
        id: str = "",
    ) -> list[str]:
        """Submit syscalls of one module; return their ids.

        `needs`: what they say they need. `id`: of the only one, which had it before.
        """
        syscalls = [
            Syscall(id or new_id(), agent, body, deadline_s=deadline_s, tenant=tenant)
            for body in bodies
        ]
        await submitted(
            self.queue(syscalls[0].module),
            [
                Submission(
                    each.id,
                    encode_job(each),
                    JobMetadata(agent, each.kind, tenant=tenant),
                    self._client,
                    each.needs if needs is None else needs,
                    deadline_s,
                )
                for each in syscalls
            ],
        )
        return [each.id for each in syscalls]

    async def hear(self, syscall_id: str) -> Reply:
        """Wait for one reply."""
        return (await self.hear_all([syscall_id]))[0]

    async def hear_all(self, ids: Sequence[str]) -> list[Reply]:
        """Wait until all have their reply, keep what else comes; fail on a second reply."""
        async with asyncio.timeout(self.patience_s):
            while not all(each in self.replies for each in ids):
                for data in await self._box.take(timeout_s=0.5):
                    message = decode_wire(data)
                    if isinstance(message, Chunk):
                        self.chunks.setdefault(message.id, []).append(message)
                    else:
                        self.replies.setdefault(message.id, []).append(message)
        assert all(len(self.replies[each]) == 1 for each in ids), "answered twice"
        return [self.replies[each][0] for each in ids]

    async def chat(self, body: LlmChat) -> ChatResult:
        """Run one chat to its end."""
        [syscall_id] = await self.submit(body)
        return chat_result(await self.hear(syscall_id))

    async def state(self, syscall_id: str) -> str:
        """Return a syscall's state, or `gone`."""
        view = await self.control.job(syscall_id)
        return view.state if view else "gone"

    async def publish_policy(self, module: Module = "llm", **values: object) -> None:
        """Publish a policy, as the scheduler would."""
        await self.control.set_policy(module, PolicyRow(**values))  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Close all connections."""
        await self._box.aclose()
        await self.connection.aclose()
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn


def chat_result(reply: Reply) -> ChatResult:
    """Return the result of a chat that succeeded."""
    result = reply.unwrap()
    assert isinstance(result, ChatResult)
    return result


def text_read(chunks: Sequence[Chunk]) -> str:
    """Return what a reader has of a stream: of what is told again, what it has not."""
    text = ""
    for chunk in chunks:
        have = len(text) - chunk.offset
        assert have >= 0, "a gap"
        assert chunk.text[:have] == text[chunk.offset :][: len(chunk.text)], "other text"
        text += chunk.text[have:]
    return text


@asynccontextmanager
async def running_worker(
    url: str, module: Module, loaded: LoadedModule, limits: Limits = LIMITS
) -> AsyncIterator[Worker]:
    """Run a worker in this loop for the length of a block; drain it at the end."""
    place = WorkerSpec(f"here.{next(_numbers)}.{module}", module, url, Keys(), limits)
    async with open_worker(place, loaded) as worker:
        serving = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            async with asyncio.timeout(TIMEOUT_S):
                await serving


@contextmanager
def redis_away(redis_server: RunningRedis) -> Iterator[None]:
    """Kill Redis for the length of a block; what it had on disk is there again afterwards."""
    redis_server.process.kill()
    try:
        yield
    finally:
        redis_server.process.start()


class WorkerProcess:
    """A worker in a process of its own, as a supervisor starts it; `of` a module, with flags."""

    def __init__(self, url: str, *of: str, **settings: object) -> None:
        self.url = url
        self._command = (sys.executable, "-m", "aios_workers", *of)
        folders = [str(ROOT / folder) for folder in ("broker", "workers")]
        if "MUTANT" in os.environ:  # the package that is broken on purpose, before the others
            folders.insert(0, os.environ["PYTHONPATH"])
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(folders),
            "AIOS_REDIS_URL": url,
            "AIOS_LLM_CORE": "simulated",
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WorkerProcess:
        self.process = subprocess.Popen(self._command, env=self._environment)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def left(self) -> int:
        """Wait until the process has ended; return its exit code."""
        assert self.process is not None
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.to_thread(self.process.wait)
