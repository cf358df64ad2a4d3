"""Links by which a person on the kernel's machine logs in to the page: once, for two minutes.

The token that such a link opens is made of the link's key and of a salt that Redis keeps until the
link is used: neither the address in a browser's history nor Redis alone is worth anything after.
"""

import hashlib
import secrets
from dataclasses import dataclass, field

from aios_broker.contract.tokens import PREFIX, digest
from aios_broker.queues.keys import Keys
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection

LINK_S = 120
_KEY_BYTES = 24


@dataclass(frozen=True, slots=True)
class PageLink:
    """A link that is not offered yet."""

    key: str = field(default_factory=lambda: secrets.token_urlsafe(_KEY_BYTES), repr=False)
    salt: str = field(default_factory=lambda: secrets.token_urlsafe(_KEY_BYTES), repr=False)

    @property
    def token(self) -> str:
        """The token that it opens."""
        made = hashlib.blake2b(self.salt.encode(), key=self.key.encode(), digest_size=32)
        return f"{PREFIX}{made.hexdigest()}"


class PageLinks:
    """Offers and redeems links."""

    def __init__(self, connection: Connection, keys: Keys | None = None) -> None:
        self._connection = connection
        self._keys = keys or Keys()

    async def offer(self, link: PageLink, identity: Identity) -> None:
        """Let a link log in as somebody; the token expires as they do."""
        await Tokens(self._connection, self._keys).put(digest(link.token), identity)
        await self._connection.execute("SET", self._place(link.key), link.salt, "EX", LINK_S)

    async def redeem(self, key: str) -> str | None:
        """Return the token of a link, this once; None: it was used, has expired, or never was."""
        salt = await self._connection.execute("GETDEL", self._place(key))
        return None if salt is None else PageLink(key, salt.decode()).token

    def _place(self, key: str) -> str:
        return self._keys.own(f"page_link:{digest(key)}")
