"""The loop of the core process: read what the worker says, step the engine, tell what came."""

from __future__ import annotations

import os
import select

from aios_workers.llm.llama.embedder import Embedder
from aios_workers.llm.llama.engine import Engine
from aios_workers.llm.llama.protocol import (
    Abort,
    Embed,
    FrameBuffer,
    FromCore,
    Generate,
    Ping,
    Pong,
    Progress,
    ToCore,
    encode_frame,
)

_READ_BYTES = 1 << 20


def serve(engine: Engine, embedder: Embedder, *, input_fd: int, output_fd: int) -> None:
    """Serve until the worker closes its end, which it also does by dying."""
    buffer = FrameBuffer()
    try:
        while True:
            if not (engine.busy or embedder.busy) or _readable(input_fd):
                data = os.read(input_fd, _READ_BYTES)
                if not data:
                    return
                for message in buffer.feed(data):
                    _handle(engine, embedder, message, output_fd)
            if engine.busy:
                write_frame(output_fd, Progress(engine.step()))
            if embedder.busy:
                write_frame(output_fd, Progress(embedder.step()))
    except BrokenPipeError:
        return


def write_frame(output_fd: int, message: FromCore) -> None:
    """Write all of a frame."""
    data = memoryview(encode_frame(message))
    while data:
        data = data[os.write(output_fd, data) :]


def _readable(input_fd: int) -> bool:
    return bool(select.select([input_fd], [], [], 0)[0])


def _handle(engine: Engine, embedder: Embedder, message: ToCore, output_fd: int) -> None:
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
