"""A simulated core in a process of its own, so that a resumed generation really moves.

`python -m tests.remote_core CONFIG` serves one SimulatedCore on its standard streams, a JSON object
a line: requests and aborts in, steps out.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import msgspec

from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.core import CoreInfo, Embeddings, GenerationRequest, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig

ROOT = Path(__file__).resolve().parents[1]
CODE = (ROOT, *(ROOT / room for room in ("broker", "sdk", "workers")))


class Order(msgspec.Struct, frozen=True):
    """Generate, or (no request) abort `request_id`."""

    request_id: str
    request: GenerationRequest | None = None
    keep: bool = True


class Event(msgspec.Struct, frozen=True):
    """One step of a generation; None: its stream has ended."""

    request_id: str
    step: Step | None


class RemoteSimulatedCore:
    """The protocol of a core; all but the vocabulary happens in the other process."""

    def __init__(self, config: SimulatedCoreConfig, process: asyncio.subprocess.Process) -> None:
        self._local = SimulatedCore(config)  # for its vocabulary and what it says of itself
        self._process = process
        self._streams: dict[str, asyncio.Queue[Step | None]] = {}
        self._reading = asyncio.create_task(self._read())

    @property
    def info(self) -> CoreInfo:
        return self._local.info

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        await self._local.start()

    async def close(self) -> None:
        self._process.kill()
        await self._process.wait()
        await self._reading

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        return self._local.render(messages)

    def is_end(self, token: int) -> bool:
        return self._local.is_end(token)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return await self._local.embed(texts)

    def decode(self, ids: Sequence[int]) -> bytes:
        return self._local.decode(ids)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        stream = self._streams[request.request_id] = asyncio.Queue()
        self._send(Order(request.request_id, request))
        while (step := await stream.get()) is not None:
            yield step

    async def abort(self, request_id: str, *, keep: bool) -> None:
        self._send(Order(request_id, keep=keep))

    async def health(self) -> None:
        assert self._process.returncode is None

    def _send(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event = msgspec.json.decode(line, type=Event)
            self._streams[event.request_id].put_nowait(event.step)


@asynccontextmanager
async def remote_simulated_core(
    config: SimulatedCoreConfig, python: str = sys.executable
) -> AsyncIterator[RemoteSimulatedCore]:
    """Lend a simulated core that runs in another process, of another Python if one is given."""
    process = await asyncio.create_subprocess_exec(
        python,
        "-m",
        "tests.remote_core",
        msgspec.json.encode(asdict(config)).decode(),
        # Our code alone: the packages are that Python's own.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, CODE))},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    core = RemoteSimulatedCore(config, process)
    await core.start()
    try:
        yield core
    finally:
        await core.close()


async def serve(config: SimulatedCoreConfig) -> None:
    """Run a core until the standard input closes."""
    core = SimulatedCore(config)
    await core.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with asyncio.TaskGroup() as tasks:
        async for line in reader:
            order = msgspec.json.decode(line, type=Order)
            if order.request is not None:
                tasks.create_task(_generate(core, order.request))
                await asyncio.sleep(0)  # it has begun before its abort is read
            else:
                await core.abort(order.request_id, keep=order.keep)


async def _generate(core: SimulatedCore, request: GenerationRequest) -> None:
    async for step in core.generate(request):
        _say(Event(request.request_id, step))
    _say(Event(request.request_id, None))


def _say(event: Event) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=SimulatedCoreConfig)))
