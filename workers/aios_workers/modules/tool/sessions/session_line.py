"""The worker's end of a session's socket: what hostile code may have written is bounded here."""

import asyncio
import struct
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from aios_broker.contract.json_text import has_more_values

LENGTH = struct.Struct(">I")
MOST_BYTES = 16 * 1024 * 1024  # of a message
MOST_VALUES = 1_000_000  # of a message: what has more takes the worker's time
LONG_S, SHARE = 0.005, 3  # who takes longer to be read waits for three times as long


class NoMessage(ConnectionError):
    """It sent what no session sends; says what."""


class SessionLine:
    """Our end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send, and wait until it is read as far as that."""
        self.post(message)
        await self._writer.drain()

    def post(self, message: Mapping[str, Any]) -> None:
        """Send without waiting: also to one that reads nothing."""
        data = msgspec.json.encode(message)
        self._writer.write(LENGTH.pack(len(data)) + data)

    async def received(self) -> tuple[dict[str, Any], int]:
        """Return a message, and its bytes.

        Raises:
            NoMessage: It is none; `msgspec.MsgspecError`, `RecursionError`.
        """
        (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        if size > MOST_BYTES:
            raise NoMessage("one that is too long")
        data = await self._reader.readexactly(size)
        began_s = time.monotonic()
        if has_more_values(data, MOST_VALUES):
            raise NoMessage("one with too many values")
        message = msgspec.json.decode(data)
        if not isinstance(message, dict):
            raise NoMessage("no object")
        if (took_s := time.monotonic() - began_s) > LONG_S:
            await asyncio.sleep(SHARE * took_s)  # others have the loop meanwhile
        return message, size

    def close(self) -> None:
        """Send and read no more."""
        self._writer.close()
