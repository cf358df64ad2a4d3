"""The loop of the core process: read what the worker says, step the engine, tell what came."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from aios_workers.llm.cores.llama.embedder import Embedder
from aios_workers.llm.cores.llama.engine import Engine
from aios_workers.llm.cores.llama.protocol import (
    Abort,
    Embed,
    FrameBuffer,
    FromCore,
    Generate,
    Ping,
    Pong,
    Progress,
    ShareStates,
    StateCounts,
    encode_frame,
)
from aios_workers.llm.cores.llama.state_store import StateKeeper

_READ_BYTES = 1 << 20
_LOOK_AGAIN_S = 0.05  # at what the writer of KV states has done, while it works

OpenStates = Callable[[ShareStates], StateKeeper]


def serve(
    engine: Engine, embedder: Embedder, open_states: OpenStates, *, input_fd: int, output_fd: int
) -> None:
    """Serve until the worker closes its end, which it also does by dying."""
    buffer = FrameBuffer()
    told = engine.shared.counts
    try:
        while True:
            if _has_input(engine, embedder, input_fd):
                data = os.read(input_fd, _READ_BYTES)
                if not data:
                    return
                for message in buffer.feed(data):
                    if isinstance(message, ShareStates):
                        engine.shared = open_states(message)
                    else:
                        _handle(engine, embedder, message, output_fd)
            if engine.busy:
                write_frame(output_fd, Progress(engine.step()))
            if embedder.busy:
                write_frame(output_fd, Progress(embedder.step()))
            told = _tell_counts(engine, told, output_fd)
    except BrokenPipeError:
        return


def write_frame(output_fd: int, message: FromCore) -> None:
    """Write all of a frame."""
    data = memoryview(encode_frame(message))
    while data:
        data = data[os.write(output_fd, data) :]


def _tell_counts(engine: Engine, told: StateCounts, output_fd: int) -> StateCounts:
    """Tell the worker what was done with KV states, if that is news."""
    counts = engine.shared.counts
    if counts != told:
        write_frame(output_fd, counts)
    return counts


def _has_input(engine: Engine, embedder: Embedder, input_fd: int) -> bool:
    """Whether there is something to read; waits for it where there is nothing else to do."""
    if engine.busy or embedder.busy:
        limit_s: float | None = 0
    else:
        limit_s = _LOOK_AGAIN_S if engine.shared.busy else None
    return bool(select.select([input_fd], [], [], limit_s)[0])


def _handle(
    engine: Engine, embedder: Embedder, message: Generate | Abort | Embed | Ping, output_fd: int
) -> None:
    match message:
        case Generate():
            engine.submit(message)
        case Abort():
            engine.abort(message.stream, keep=message.keep)
            embedder.abort(message.stream)
        case Embed():
            embedder.submit(message)
        case Ping():
            write_frame(output_fd, Pong(message.number))
