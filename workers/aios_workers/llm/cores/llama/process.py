"""The worker's side of a core process: start it, talk to it, notice when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import msgspec

from aios_broker.contract.errors import CoreError, from_wire
from aios_workers.llm.cores.base_core import how_it_ended
from aios_workers.llm.cores.llama.protocol import (
    LENGTH,
    MAX_FRAME_BYTES,
    Abort,
    Embed,
    Embedded,
    Ended,
    FromCore,
    Generate,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    StateCounts,
    ToCore,
    Tokens,
    decode_from_core,
    encode_frame,
)

logger = logging.getLogger(__name__)

LAST_WORDS_LINES = 20
CLOSE_LIMIT_S = 5.0
_FrameEnd = (asyncio.IncompleteReadError, ConnectionError)


class CoreProcess:
    """One running core process. Use `CoreProcess.start`; when it has failed, start another."""

    def __init__(self, process: asyncio.subprocess.Process, *, stall_limit_s: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.state_counts = StateCounts()  # as the process told them last
        self._process = process
        self._input, self._output, self._errors = process.stdin, process.stdout, process.stderr
        self._stall_limit_s = stall_limit_s
        self._streams: dict[int, asyncio.Queue[Tokens | Embedded | Ended | CoreError]] = {}
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._heard_at = asyncio.get_running_loop().time()
        self._failure: CoreError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, command: Sequence[str], *, start_limit_s: float, stall_limit_s: float
    ) -> tuple[CoreProcess, Ready]:
        """Start a process and return when its model is loaded.

        It gets a session of its own: signals for the worker's process group (Ctrl-C, a
        supervisor's TERM) do not take the model away from a worker that is finishing its work.

        Raises:
            InvalidConfig: it cannot load what it was told to load.
            CoreError: it died, or took longer than `start_limit_s`.
        """
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        core = cls(process, stall_limit_s=stall_limit_s)
        core._tasks.append(asyncio.create_task(core._listen_to_errors()))
        try:
            async with asyncio.timeout(start_limit_s):
                ready = await core._first_frame()
        except TimeoutError as error:
            await core.close()
            raise CoreError(f"the core was not ready within {start_limit_s:g} s") from error
        except BaseException:
            await core.close()
            raise
        core._tasks.append(asyncio.create_task(core._listen()))
        core._tasks.append(asyncio.create_task(core._watch()))
        return core, ready

    @property
    def pid(self) -> int:
        """The operating system's number of the process."""
        return self._process.pid

    @property
    def failed(self) -> bool:
        """Whether it has died, hung or been closed."""
        return self._failure is not None

    async def embed(self, request: Embed) -> tuple[float, ...]:
        """Return the vector of a text.

        Raises:
            CoreError: the process died or hung, was closed, or could not compute.
        """
        found = [each.vector async for each in self.events(request) if isinstance(each, Embedded)]
        if not found:
            raise CoreError("the core was closed")
        return found[0]

    async def events(self, request: Generate | Embed) -> AsyncGenerator[Tokens | Embedded, None]:
        """Yield what comes of a request: tokens until it ends, or one vector.

        Without a finish reason it was aborted. Leaving the iterator early aborts it.

        Raises:
            CoreError: the process died or hung, or could not compute.
            InvalidSyscall: the constraint cannot be kept.
        """
        if self._failure is not None:
            raise self._failure
        events = self._streams[request.stream] = asyncio.Queue()
        if len(self._streams) == 1:
            self._heard_at = asyncio.get_running_loop().time()
        over = False
        try:
            self.send(request)
            while not over:
                event = await events.get()
                if isinstance(event, CoreError):
                    over = True
                    raise event
                if isinstance(event, Ended):
                    over = True
                    if event.error is not None:
                        raise from_wire(event.error)
                    return
                over = isinstance(event, Embedded) or event.finish_reason is not None
                yield event
        finally:
            del self._streams[request.stream]
            if not over:
                self.send(Abort(request.stream, keep=False))

    def send(self, message: ToCore) -> None:
        """Write a message; to a process that has failed it goes nowhere."""
        if self._failure is None:
            self._input.write(encode_frame(message))

    async def ping(self, number: int) -> None:
        """Return when the process answers, at the latest after its current step."""
        if self._failure is not None:
            raise self._failure
        answer = self._pongs[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(Ping(number))
            await answer
        finally:
            del self._pongs[number]

    async def close(self) -> None:
        """End the process; streams under way end as aborted. Safe to call twice."""
        self._fail(CoreError("the core was closed"), aborted=True)
        self._input.close()  # a healthy process ends at this
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _first_frame(self) -> Ready:
        try:
            first = await self._read_frame()
        except _FrameEnd as error:
            raise await self._death() from error
        if isinstance(first, Refused):
            raise from_wire(first.error)
        if not isinstance(first, Ready):
            raise CoreError(f"the core began with {type(first).__name__}")
        return first

    async def _read_frame(self) -> FromCore:
        (length,) = LENGTH.unpack(await self._output.readexactly(LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise msgspec.DecodeError(f"a frame of {length} bytes")
        return decode_from_core(await self._output.readexactly(length))

    async def _listen(self) -> None:
        try:
            while True:
                frame = await self._read_frame()
                self._heard_at = asyncio.get_running_loop().time()
                self._deliver(frame)
        except _FrameEnd:
            self._fail(await self._death())
        except msgspec.DecodeError as error:
            self._kill()
            self._fail(CoreError(f"the core sent what is not a frame: {error}"))

    def _deliver(self, frame: FromCore) -> None:
        match frame:
            case Progress():
                for event in frame.events:
                    queue = self._streams.get(event.stream)
                    if queue is not None:
                        queue.put_nowait(event)
            case Pong():
                answer = self._pongs.get(frame.number)
                if answer is not None and not answer.done():
                    answer.set_result(None)
            case StateCounts():
                self.state_counts = frame
            case Ready() | Refused():
                logger.warning("the core said %s after its start", type(frame).__name__)

    async def _watch(self) -> None:
        """Kill a process that owes an answer and has not moved for too long."""
        loop = asyncio.get_running_loop()
        while self._failure is None:
            await asyncio.sleep(self._stall_limit_s / 4)
            silent_s = loop.time() - self._heard_at
            if self._streams and silent_s > self._stall_limit_s:
                self._kill()
                self._fail(CoreError(f"the core made no step for {silent_s:.0f} s"))

    async def _listen_to_errors(self) -> None:
        while not self._errors.at_eof():
            try:
                text = (await self._errors.readline()).decode("utf-8", "replace").rstrip()
            except ValueError:
                continue  # a line over the reader's limit; the reader has dropped it
            if text:
                self._last_words.append(text)
                logger.warning("core %d: %s", self.pid, text)

    async def _death(self) -> CoreError:
        code = await self._process.wait()
        await asyncio.wait(self._tasks[:1], timeout=1.0)  # its last words
        words = f"; its last words: {' | '.join(self._last_words)}" if self._last_words else ""
        return CoreError(f"the core process died {how_it_ended(code)}{words}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _fail(self, error: CoreError, *, aborted: bool = False) -> None:
        if self._failure is not None:
            return
        self._failure = error
        for stream, queue in self._streams.items():
            queue.put_nowait(Ended(stream) if aborted else error)
        for answer in self._pongs.values():
            if not answer.done():
                answer.set_exception(error)
