"""Inside a sandbox: the way out as programs know one, a proxy on the loopback address.

    python -I PATH_OF_THIS_FILE SOCKET -- COMMAND...

What connects there is passed on to the socket, byte by byte: the proxy behind it decides. The
sandbox has a network of its own, so nobody else can connect. The command takes this process's
place; the relay is a child of its sandbox's first process, and ends with it.
"""

import asyncio
import os
import socket
import sys

CHUNK_BYTES = 64 * 1024
WAITING = 64
_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def main(path: str, command: list[str]) -> None:
    """Listen, leave a relay behind, and be the command."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(WAITING)
    where = f"http://127.0.0.1:{listener.getsockname()[1]}"
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            _relay(listener, path)
        os._exit(0)
    os.waitpid(child, 0)
    listener.close()
    environ = dict(os.environ)  # noqa: TID251  what the sandbox told, and this
    os.execve(command[0], command, {**environ, **dict.fromkeys(_NAMES, where)})


def _relay(listener: socket.socket, path: str) -> None:
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for file in (0, 1, 2):
            os.dup2(nowhere, file)
        asyncio.run(_serve(listener, path))
    finally:
        os._exit(1)


async def _serve(listener: socket.socket, path: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_unix_connection(path)
            try:
                await asyncio.gather(_passed(reader, outer), _passed(inner, writer))
            finally:
                outer.close()
        except OSError:
            pass  # one of both has left
        finally:
            writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])
