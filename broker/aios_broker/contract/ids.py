"""Ids of syscalls: each ends in the stamp of its agent, which the kernel's secret makes.

The first 20 hex digits are random, or follow from an idempotency key and the secret; the last 12
are the stamp. So nobody can tell what another agent's next id will be, and one that is known is of
no use to others: the door takes from an agent only ids that have its own stamp.
"""

import hashlib
import os
from typing import Self

from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.names import Owner

KEY_BYTES = 32
STAMP_BYTES = 6
REST_BYTES = 10
MOST_KEPT = 10_000  # agents whose stamps are at hand


class Ids:
    """The ids of one agent's syscalls."""

    __slots__ = ("_key", "_stamp")

    def __init__(self, secret: bytes, owner: Owner) -> None:
        self._take(_hashed("\x1f".join(owner), secret, KEY_BYTES))

    @classmethod
    def of_key(cls, key: bytes) -> Self:
        """Return the ids that a key makes: all that an agent outside has of the secret."""
        ids = cls.__new__(cls)
        ids._take(key)
        return ids

    def _take(self, key: bytes) -> None:
        self._key = key
        self._stamp = _hashed("stamp", key, STAMP_BYTES).hex()

    @property
    def key(self) -> bytes:
        """What makes them; from it nobody finds the secret, or another agent's key."""
        return self._key

    def fresh(self) -> str:
        """Return one that nobody has had."""
        return os.urandom(REST_BYTES).hex() + self._stamp

    def from_key(self, key: str) -> str:
        """Return the one that an idempotency key stands for: the same key, the same syscall."""
        return _hashed(f"key\x1f{key}", self._key, REST_BYTES).hex() + self._stamp

    def owns(self, syscall_id: str) -> bool:
        """Tell whether an id is one of this agent's."""
        return syscall_id.endswith(self._stamp)


class IdMaker:
    """Makes the ids of all agents, and knows whose one may be."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._known: dict[Owner, Ids] = {}

    def of(self, owner: Owner) -> Ids:
        """Return the ids of an agent."""
        found = self._known.get(owner)
        if found is None:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            found = self._known[owner] = Ids(self._secret, owner)
        return found


def id_refused(owner: Owner) -> AccessDenied:
    """Return the error of a syscall whose id is not its agent's."""
    return AccessDenied(
        f"the id is none of agent {owner.agent!r} of tenant {owner.tenant!r}",
        field="id",
        remedy="let the SDK make the id, or name the step by a key",
    )


def _hashed(text: str, key: bytes, size: int) -> bytes:
    data = text.encode(errors="surrogatepass")
    return hashlib.blake2b(data, key=key, digest_size=size).digest()
