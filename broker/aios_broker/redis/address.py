"""Where Redis is: one server, a master with its replicas, or a cluster. Read from one URL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.urls import without_password

DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class Address:
    """One server, and how it is entered."""

    path: str = ""  # unix socket; empty: TCP
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls: bool = False
    username: str = ""
    password: str = ""
    db: int = 0

    def __str__(self) -> str:
        """Return it without its password."""
        return self.path or f"{self.host}:{self.port}"

    def neighbour(self, place: str) -> Address:
        """Return another node of the same cluster, entered the same way.

        Args:
            place: `host:port` as a redirection names it; without a host: this one's.
        """
        host, _, port = place.rpartition(":")
        return replace(self, path="", host=host.strip("[]") or self.host, port=int(port), db=0)


def parse_url(url: str) -> tuple[Address, ...]:
    """Read `redis://`, `rediss://` and `unix://` URLs as redis-py writes them.

    One URL may name several TCP servers: `redis://user:password@a:6379,b:6379/0`.

    Raises:
        InvalidConfig: another scheme, a port or database that is no number, a server without a
            name among several.
    """
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme == "unix":
            return (_socket(parts, int(query.get("db", 0))),)
        if parts.scheme in ("redis", "rediss"):
            return _servers(parts, int(parts.path.strip("/") or query.get("db", "0")))
    except ValueError:  # whose text may have a part of the password
        raise _bad_url(url, "a port or database is no number, or a server has no name") from None
    raise _bad_url(url, f"the scheme {parts.scheme!r} is not known")


def _socket(parts: SplitResult, db: int) -> Address:
    return Address(
        path=unquote(parts.path),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        db=db,
    )


def _servers(parts: SplitResult, db: int) -> tuple[Address, ...]:
    credentials, _, places = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    several = places.count(",") > 0
    found = []
    for place in places.split(","):
        if several and not place:
            raise ValueError("a server without a name")
        one = urlsplit(f"//{place}")
        found.append(
            Address(
                host=one.hostname or "127.0.0.1",
                port=one.port or DEFAULT_PORT,
                tls=parts.scheme == "rediss",
                username=unquote(username),
                password=unquote(password),
                db=db,
            )
        )
    return tuple(found)


def _bad_url(url: str, why: str) -> InvalidConfig:
    return InvalidConfig(
        f"{without_password(url)!r} is not the URL of a Redis: {why}",
        field="AIOS_REDIS_URL",
        remedy="write redis://host:port/db, redis://host:port,other:port/db, rediss://..., or "
        "unix:///path/to/socket?db=0",
    )
