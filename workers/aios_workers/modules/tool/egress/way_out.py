"""Opens a way out for a sandbox: a folder with the proxy's socket and the certificate to trust."""

import asyncio
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

from aios_broker.contract.errors import InvalidConfig, ToolUnavailable
from aios_broker.contract.names import Owner
from aios_broker.contract.tools import ToolCard
from aios_workers.modules.tool.egress.addresses import Dialer
from aios_workers.modules.tool.egress.authority import Authority
from aios_workers.modules.tool.egress.log import Asked, EgressLog
from aios_workers.modules.tool.egress.message import MOST_HEAD_BYTES
from aios_workers.modules.tool.egress.proxy import Passage, Proxy
from aios_workers.modules.tool.egress.secrets import Placeholders, SecretFile
from aios_workers.modules.tool.running import Launch

RELAY = Path(__file__).parents[1] / "process" / "relay.py"
SOCKET, CERTIFICATE = "proxy.sock", "authority.pem"
# Where programs look for the certificates that they trust.
_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


@dataclass(frozen=True, slots=True)
class WayOut:
    """The way out of one sandbox."""

    folder: Path
    told: dict[str, str]  # placeholders, by the names of their keys
    _server: asyncio.Server
    _proxy: Proxy

    def through(self, launch: Launch, python: Path) -> Launch:
        """Return how a process is started that has this way out."""
        trust = dict.fromkeys(_TRUST, str(self.folder / CERTIFICATE))
        relay = (str(python), "-I", str(RELAY), str(self.folder / SOCKET), "--")
        return replace(
            launch,
            command=(*relay, *launch.command),
            environ={**launch.environ, **trust, **self.told},
            readable=(*launch.readable, self.folder),
        )

    async def close(self) -> None:
        """End all connections, and take it away."""
        self._server.close()
        await self._proxy.close()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Egress:
    """The ways out of one worker's sandboxes."""

    folder: Path  # where their sockets lie
    secrets: SecretFile
    dialer: Dialer
    log: EgressLog

    async def open(self, card: ToolCard, owner: Owner) -> WayOut:
        """Open a way out by the rules of a tool, for calls of one agent.

        Raises:
            ToolUnavailable: A key that it uses is not there.
        """
        placeholders = self._placeholders(card.secrets)

        def note(origin: str, method: str, path: str, outcome: str, keys: set[str]) -> None:
            asked = Asked(owner, card.name, card.version, origin, method, outcome)
            self.log.note(asked, path, keys)

        authority = Authority()
        proxy = Proxy(Passage(card.network, placeholders, note), self.dialer, authority)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=self.folder))
        try:
            (folder / CERTIFICATE).write_bytes(authority.certificate)
            server = await asyncio.start_unix_server(
                proxy.serve, folder / SOCKET, limit=MOST_HEAD_BYTES
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return WayOut(folder, dict(placeholders.told), server, proxy)

    def _placeholders(self, names: Iterable[str]) -> Placeholders:
        try:
            return Placeholders.of(self.secrets, names)
        except InvalidConfig as error:
            raise ToolUnavailable(error.message, field=error.field, remedy=error.remedy) from error
