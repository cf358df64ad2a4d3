"""A plugin for RQ's own tests: they run in the Redis of a kernel, and leave its keys alone.

RQ's tests look for an empty database of a server at port 6379 and flush it around each test. Here
that server is the kernel's (RQ_TESTS_REDIS, a socket), and a flush takes what came since the tests
began. It is copied beside them, where `tests` is their package, and imports nothing of us.
"""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.connection

SOCKET = os.environ["RQ_TESTS_REDIS"]
LIVING = os.environ["RQ_TESTS_LIVING"].split(",")  # ids of the kernel's syscalls
QUEUES = os.environ["RQ_TESTS_QUEUES"].split(",")  # of the kernel
OURS = (*LIVING, *(f":{queue}" for queue in QUEUES))  # in names of keys that may yet come
THEIR_PORT = 6379
SHARED = (b"rq:queues", b"rq:workers")  # sets in which both are


class KernelsConnection(redis.connection.UnixDomainSocketConnection):
    """To RQ's usual port: it leads to the kernel's socket, whatever database is asked for."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of redis-py
        of_tcp = (
            "host",
            "port",
            "db",
            "socket_keepalive",
            "socket_keepalive_options",
            "socket_type",
        )
        kept = {name: value for name, value in options.items() if name not in of_tcp}
        super().__init__(path=SOCKET, db=0, **kept)  # type: ignore[no-untyped-call]


_pool_init = redis.ConnectionPool.__init__


def _kernels_pool(
    self: redis.ConnectionPool,
    connection_class: type | None = None,
    **options: Any,  # noqa: ANN401 - those of redis-py
) -> None:
    asked = connection_class or redis.Connection
    if asked is redis.Connection and options.get("port", THEIR_PORT) == THEIR_PORT:
        asked = KernelsConnection
    _pool_init(self, connection_class=asked, **options)


setattr(redis.ConnectionPool, "__init__", _kernels_pool)  # noqa: B010 - mypy allows no other way
_kernel = redis.Redis()
_before = set(_kernel.scan_iter("*", count=1000))
_members = {key: _kernel.smembers(key) for key in SHARED}


def _is_ours(key: bytes) -> bool:
    name = key.decode(errors="replace")
    return key in _before or name.startswith("rq:aios:") or any(text in name for text in OURS)


def take_away_what_came(self: redis.Redis, *_: object, **__: object) -> bool:
    """Do what FLUSHDB does, to all but the kernel's."""
    came = [key for key in _kernel.scan_iter("*", count=1000) if not _is_ours(key)]
    if came:
        _kernel.delete(*came)
    for key, members in _members.items():
        if others := _kernel.smembers(key) - members:
            _kernel.srem(key, *others)
    return True


setattr(redis.Redis, "flushdb", take_away_what_came)  # noqa: B010
THEIRS = importlib.import_module("tests")
setattr(THEIRS, "find_empty_redis_database", lambda ssl=False: redis.Redis())  # noqa: B010


@pytest.fixture(autouse=True)
def nothing_of_the_kernels_goes() -> Iterator[None]:
    """No test of RQ's takes the record of a syscall that lives."""
    yield
    gone = {one for one in LIVING if not _kernel.exists(f"rq:job:{one}")}
    assert not gone
