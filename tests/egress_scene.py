"""A host of a test, with TLS or without; and the proxy of a sandbox that may reach it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aios_broker.contract.names import Owner
from aios_broker.contract.tools import NetworkRule, ToolCard
from aios_workers.modules.tool.egress.addresses import Dialer
from aios_workers.modules.tool.egress.log import EgressLine, EgressLog
from aios_workers.modules.tool.egress.secrets import FILE_NAME, SecretFile
from aios_workers.modules.tool.egress.way_out import Egress, WayOut

KEY = "sk-live-0123456789abcdef"
HERE = ipaddress.ip_network("127.0.0.0/8")
OWNER = Owner("acme", "ada")


class Host:
    """An HTTP server that notes what it was asked, and echoes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[str] = []  # whole requests
        self.answers: dict[str, bytes] = {}  # by path; else what was asked
        self.port = 0
        self.serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            if b"content-length: " in head.lower():
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(size)
            elif b"chunked" in head.lower():
                body = await reader.readuntil(b"0\r\n\r\n")
            self.heard.append((head + body).decode("latin-1"))
            path = head.split(b" ")[1].decode()
            told = self.answers.get(path)
            if told is None:
                said = head + body
                told = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said
            writer.write(told)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await left(writer)
            self.serving.discard(task)


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server that is `name`, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "host.pem"
    path.write_bytes(public + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=public.decode())


@dataclass
class EgressScene:
    """A host, and what sandboxes may ask of it."""

    host: Host
    egress: Egress
    lines: list[EgressLine]
    secrets: Path
    names: dict[str, Sequence[str]] = field(default_factory=dict)  # what names resolve to
    looked_up: list[str] = field(default_factory=list)

    def keys(self, hosts: Sequence[str], **keys: str) -> None:
        """Write the file of keys."""
        tables = [
            f"[secrets.{name}]\nvalue = {key!r}\nhosts = {list(hosts)!r}\n"
            for name, key in (keys or {"API_KEY": KEY}).items()
        ]
        self.secrets.write_text("\n".join(tables).replace("'", '"'))
        self.secrets.chmod(0o600)

    def rule(self, **settings: object) -> NetworkRule:
        """Return a rule for the host."""
        return NetworkRule(**({"host": f"{self.host.name}:{self.host.port}"} | settings))  # type: ignore[arg-type]

    @asynccontextmanager
    async def way_out(
        self, *rules: NetworkRule, secrets: Sequence[str] = ()
    ) -> AsyncIterator[WayOut]:
        """Open a way out for the length of a block."""
        card = ToolCard(name="me/fetch", version="0" * 12, network=rules, secrets=tuple(secrets))
        way_out = await self.egress.open(card, OWNER)
        try:
            yield way_out
        finally:
            await way_out.close()

    async def noted(self) -> list[tuple[str, str, str, Mapping[str, object]]]:
        """Return what the log was told: origin, method, outcome, and the rest."""
        await self.egress.log.step()
        return [
            (
                line.asked.origin,
                line.asked.method,
                line.asked.outcome,
                {"requests": line.requests, "paths": line.paths, "keys": line.keys},
            )
            for line in self.lines
        ]


@asynccontextmanager
async def egress_scene(
    folder: Path, *, tls: bool = True, name: str = "api.example.org"
) -> AsyncIterator[EgressScene]:
    """Serve a host for the length of a block; it alone resolves, to this machine."""
    host = Host(name)
    server_context, client_context = certified(folder, name)
    server = await asyncio.start_server(
        host.serve, "127.0.0.1", 0, ssl=server_context if tls else None
    )
    host.port = server.sockets[0].getsockname()[1]
    lines: list[EgressLine] = []

    async def write(found: list[EgressLine]) -> None:
        lines.extend(found)

    secrets = folder / FILE_NAME
    names: dict[str, Sequence[str]] = {name: ["127.0.0.1"]}
    looked_up: list[str] = []

    async def resolve(asked: str, port: int) -> Sequence[str]:
        looked_up.append(asked)
        return names.get(asked) or _address(asked)

    dialer = Dialer(resolve=resolve, tls=client_context, allowed=(HERE,))
    egress = Egress(folder / "egress", SecretFile(secrets), dialer, EgressLog(write))
    try:
        yield EgressScene(host, egress, lines, secrets, names, looked_up)
    finally:
        server.close()
        if host.serving:
            await asyncio.wait(host.serving)


def _address(text: str) -> Sequence[str]:
    try:
        return [str(ipaddress.ip_address(text))]
    except ValueError as error:
        raise OSError(f"nobody knows {text}") from error


async def ask(
    way_out: WayOut, host: str, request: bytes, *, tls: bool = True, trust: bool = True
) -> bytes:
    """Return all that comes back to a request that a program in a sandbox makes."""
    reader, writer = await asyncio.open_unix_connection(way_out.folder / "proxy.sock")
    try:
        async with asyncio.timeout(20):
            if tls:
                writer.write(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in head.split(b"\r\n")[0]:
                    return head + await reader.read()
                data = (way_out.folder / "authority.pem").read_text() if trust else None
                context = ssl.create_default_context(cadata=data)
                name = host.rpartition(":")[0] or host
                await writer.start_tls(context, server_hostname=name.strip("[]"))
            writer.write(request)
            return await reader.read()
    finally:
        await left(writer)


async def left(writer: asyncio.StreamWriter) -> None:
    """Close a connection; return when it is closed."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(5):
            await writer.wait_closed()
    writer.transport.abort()
