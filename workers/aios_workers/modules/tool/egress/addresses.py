"""Which addresses a tool may reach: those of the internet alone.

A name is looked up once, and what was looked up is what is called: it cannot be another address the
second time.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aios_workers.addresses import Address, is_public
from aios_workers.modules.tool.egress.rules import Origin, Refused

CONNECT_LIMIT_S = 10.0
MOST_ADDRESSES = 4  # of one host, that are tried

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def resolved(host: str, port: int) -> list[str]:
    """Return the addresses of a host, by the system's resolver.

    Raises:
        OSError: It has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, slots=True)
class Dialer:
    """Connects to hosts of the internet."""

    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = resolved
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    allowed: tuple[Network, ...] = ()  # that may be reached although they are private

    async def connect(self, origin: Origin) -> Streams:
        """Return a connection, whose certificate is checked where it is HTTPS.

        Raises:
            Refused: It is not reached, or may not be.
        """
        last: Exception | None = None
        for address in (await self._addresses(origin))[:MOST_ADDRESSES]:
            try:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    streams = await self._connected(address, origin)
            except (OSError, TimeoutError) as error:
                last = error
                continue
            self._check_other_machine(streams, origin)
            return streams
        raise Refused(f"{origin.authority} is not reached: {_told(last)}", 502) from last

    async def _addresses(self, origin: Origin) -> list[str]:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                found = [
                    ipaddress.ip_address(each.partition("%")[0])
                    for each in await self.resolve(origin.host, origin.port)
                ]
        except (OSError, TimeoutError, UnicodeError, ValueError) as error:
            raise Refused(f"{origin.host} is not known: {_told(error)}", 502) from error
        if not found or not all(map(self._may_reach, found)):
            raise Refused(f"{origin.host} is not an address of the internet")
        return [str(each) for each in dict.fromkeys(found)]

    def _may_reach(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self.allowed)

    async def _connected(self, address: str, origin: Origin) -> Streams:
        if origin.scheme == "http":
            return await asyncio.open_connection(address, origin.port)
        return await asyncio.open_connection(
            address, origin.port, ssl=self.tls, server_hostname=origin.host
        )

    def _check_other_machine(self, streams: Streams, origin: Origin) -> None:
        """Refuse this machine by its public address: what listens there may believe it."""
        _, writer = streams
        here, there = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        address = ipaddress.ip_address(str(there[0]).partition("%")[0])
        if here[0] == there[0] and not any(address in network for network in self.allowed):
            writer.transport.abort()
            raise Refused(f"{origin.host} is not an address of the internet")


def _told(error: Exception | None) -> str:
    return str(error) or type(error).__name__
