"""Bounded work for tests: it does to itself what it is told."""

import contextlib
import json
import os
import signal
import sys

from aios_broker.process.bounded import serve


def _work(request: bytes) -> bytes:
    match request.split(b" ", 1):
        case [b"say", text]:
            return text
        case [b"look"]:
            links = []
            for each in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # that of the listing is gone
                    links.append(os.readlink(f"/proc/self/fd/{each}"))
            return json.dumps({"variables": dict(os.environ), "files": links}).encode()
        case [b"spin"]:
            while True:
                pass
        case [b"eat"]:
            return bytes(1 << 30)
        case [b"die"]:
            os.abort()
        case [b"wait"]:
            signal.pause()
        case _:
            pass
    raise ValueError(request)


if __name__ == "__main__":
    sys.exit(serve(_work))
