"""The one socket of a session's process: requests come by it, events and syscalls go by it.

Messages are a length (4 bytes, big end first) and JSON. A thread of its own reads, so that what
runs can be interrupted.
"""

import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

LENGTH = struct.Struct(">I")
MOST_BYTES = 16 * 1024 * 1024


class Line:
    """Its end in the sandbox."""

    def __init__(self, on_interrupt: Callable[[int], None], on_end: Callable[[], None]) -> None:
        """Keep standard input for us; what runs gets an empty one."""
        self._socket = socket.socket(fileno=os.dup(0))
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        self._sending = threading.Lock()
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._asked: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._numbers = 0
        self._on_interrupt = on_interrupt
        self._on_end = on_end

    def begin(self) -> dict[str, Any]:
        """Return the first message; from here on a thread reads."""
        first = self._received()
        threading.Thread(target=self._read, name="kernel", daemon=True).start()
        return first

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event."""
        data = json.dumps(event).encode()
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has {len(data)} bytes, the limit is {MOST_BYTES}")
        with self._sending:
            self._socket.sendall(LENGTH.pack(len(data)) + data)

    def next_run(self) -> dict[str, Any]:
        """Return the next run; waits for it."""
        return self._requests.get()

    def call(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a syscall; return `{"value": ...}` or `{"error": {...}}`."""
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._sending:
            self._numbers += 1
            number = self._numbers
        self._asked[number] = answers
        try:
            self.tell({"call": number, "body": body})
            return answers.get()
        finally:
            self._asked.pop(number, None)

    def _received(self) -> dict[str, Any]:
        (size,) = LENGTH.unpack(self._exactly(LENGTH.size))
        message: dict[str, Any] = json.loads(self._exactly(size))
        return message

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(min(size, 1 << 16))
            if not part:
                raise ConnectionError("the worker has left")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self) -> None:
        try:
            while True:
                message = self._received()
                if "answer" in message:
                    if (asked := self._asked.get(message["answer"])) is not None:
                        asked.put(message)
                elif "interrupt" in message:
                    self._on_interrupt(message["interrupt"])
                else:
                    self._requests.put(message)
        finally:
            self._on_end()
            os._exit(1)
