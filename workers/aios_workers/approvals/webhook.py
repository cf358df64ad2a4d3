"""Tells people, by HTTP, of what waits for them: signed, at least once, at nobody's cost.

What is signed has the time and a number used once, so that a receiver can refuse what it has had.
Nothing is followed: a receiver that redirects was not told. An address within a private network
is not called unless the operator allowed it, whatever its name resolves to.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from aios_broker.access.requests import in_turns, one_approval
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import InvalidConfig
from aios_broker.http_client import HttpClient
from aios_broker.postgres.store import Store
from aios_workers.addresses import is_public

SIGNATURE = "X-AIOS-Signature"
POST_LIMIT_S = 10.0
PAUSE_S = 1.0
AT_ONCE = 8  # posts that are under way together
PER_ROUND = 32
LEAST_SECRET_CHARACTERS = 16
_FIELDS = {"url": "AIOS_APPROVAL_WEBHOOK", "secret": "AIOS_APPROVAL_WEBHOOK_SECRET"}

# Tenants and their agents take turns: who asks a thousand times hides nobody's only request.
_UNTOLD = f"""
    WITH {in_turns("p.state = 'waiting' AND p.announced_at IS NULL")}
    SELECT id FROM turns ORDER BY place LIMIT {PER_ROUND}
"""
_TOLD = "UPDATE approval SET announced_at = now() WHERE id = ANY(%s)"

logger = logging.getLogger(__name__)


class _Refused(Exception):
    """The receiver was not told; the message says why."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver, and the secret that it shares with the kernel."""

    url: str
    secret: str
    private: bool = False  # it may lie in a private network

    def __post_init__(self) -> None:
        """Refuse what cannot be told anything, or could not tell whom to believe.

        Raises:
            InvalidConfig: no HTTP address, or a secret that is none.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidConfig(
                "is no address of an HTTP server",
                field=_FIELDS["url"],
                remedy="begin it with https:// or http://",
            )
        if len(self.secret) < LEAST_SECRET_CHARACTERS:
            raise InvalidConfig(
                f"has {len(self.secret)} characters: whoever guesses it can speak for the kernel",
                field=_FIELDS["secret"],
                remedy=f"set one of {LEAST_SECRET_CHARACTERS} or more, and tell it the receiver",
            )

    async def post(self, client: httpx.AsyncClient, approval: Approval) -> bool:
        """Tell of one approval; False: it was not taken, and is to be tried again."""
        content = msgspec.json.encode(approval)
        headers = {
            "Content-Type": "application/json",
            "Host": urlsplit(self.url).netloc.rpartition("@")[2],
            SIGNATURE: sign(
                self.secret, content, at_s=int(time.time()), once=secrets.token_hex(16)
            ),
        }
        try:
            url, name = await self._resolved()
            answer = await client.post(
                url, content=content, headers=headers, extensions={"sni_hostname": name}
            )
            if not answer.is_success:
                raise _Refused(f"it answered {answer.status_code}")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, _Refused) as error:
            logger.warning(
                "the approval webhook did not take %s, it is tried again: %s",
                approval.id,
                str(error) or type(error).__name__,
            )
            return False
        return True

    async def _resolved(self) -> tuple[httpx.URL, str]:
        """Return the address with its host as a number, and the host's name.

        What is looked up is what is called: a name cannot answer otherwise the second time.
        """
        url = httpx.URL(self.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host, port, type=socket.SOCK_STREAM
        )
        addresses = [str(entry[4][0]) for entry in found]
        known = [ipaddress.ip_address(each.partition("%")[0]) for each in addresses]
        if not self.private and not all(map(is_public, known)):
            raise _Refused(
                f"{url.host} is in a private network; AIOS_APPROVAL_WEBHOOK_PRIVATE=1 allows that"
            )
        return url.copy_with(host=addresses[0]), url.host


def sign(secret: str, content: bytes, *, at_s: int, once: str) -> str:
    """Return the header that proves who sent `content`, when (Unix time), and that it is new.

    `v1` is HMAC-SHA256 over `<time>.<once>.<content>`.
    """
    signed = f"{at_s}.{once}.".encode() + content
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={at_s},once={once},v1={digest}"


class WebhookSender:
    """Tells the receiver of what waits and was not told yet, a round at a time."""

    def __init__(self, store: Store, webhook: Webhook) -> None:
        self._store = store
        self._webhook = webhook

    async def step(self) -> float:
        """Tell of up to PER_ROUND approvals; return how long to wait before the next round, in s.

        Two processes may tell of the same one: receivers know it by its id.
        """
        waiting = await self._untold()
        told: list[str] = []
        limit = asyncio.Semaphore(AT_ONCE)
        async with HttpClient(
            timeout=POST_LIMIT_S, follow_redirects=False, trust_env=False
        ) as client:

            async def tell(approval: Approval) -> None:
                async with limit:
                    if await self._webhook.post(client, approval):
                        told.append(approval.id)

            await asyncio.gather(*map(tell, waiting))
        if told:
            async with self._store.as_steward() as cursor:
                await cursor.execute(_TOLD, (told,))
        return PAUSE_S

    async def _untold(self) -> Sequence[Approval]:
        async with self._store.as_steward() as cursor:
            await cursor.execute(_UNTOLD)
            rows: Sequence[Any] = await cursor.fetchall()
            return [await one_approval(cursor, row.id) for row in rows]
