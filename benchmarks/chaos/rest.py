"""What is left over when nothing runs: keys, leases, connections."""

from __future__ import annotations

from collections import Counter
from typing import Any

import redis

from aios_broker.contract.syscall import MODULES

# Places where a live syscall stands: empty at rest.
PLACES = ("live", "leases", "deadlines", "scores", "yielding", "held", "parked", "control",
          "suspects")  # fmt: skip
RQ_PLACES = ("queue", "wip", "deferred")
SNAPSHOTS = ("snapshots", "snapshot_bytes")
# Keys of one syscall or one client: each must expire by itself once it is over.
PASSING = ("rq:job:", "rq:results:", "rq:execution:", "rq:aios:reply:", "rq:aios:context")
CLIENT_CONNECTIONS = ("aios-sdk", "chaos-")
SIZES = {"list": "llen", "hash": "hlen", "zset": "zcard", "set": "scard", "stream": "xlen"}


def left_over(client: Any) -> dict[str, int]:
    """Return what should be empty, gone or expiring, and is not: name -> how much of it.

    Args:
        client: A redis.Redis of the kernel's server.
    """
    keys = [f"rq:aios:{name}" for name in SNAPSHOTS]
    for module in MODULES:
        keys += [f"rq:aios:{name}:{module}" for name in PLACES]
        keys += [f"rq:{name}:{module}" for name in RQ_PLACES]
    found = {key: _size(client, key) for key in keys}
    found["rq:aios:snapshot_total"] = int(client.get("rq:aios:snapshot_total") or 0)
    found |= _without_end(client)
    return {name: count for name, count in found.items() if count}


def connections(client: Any) -> dict[str, int]:
    """Return the connections of clients that have left."""
    names = Counter(one["name"] for one in client.client_list())
    return {
        f"connection {name}": count
        for name, count in names.items()
        if name.startswith(CLIENT_CONNECTIONS)
    }


def _size(client: Any, key: str) -> int:
    kind = client.type(key).decode()
    return int(getattr(client, SIZES[kind])(key)) if kind != "none" else 0


def _without_end(client: redis.Redis) -> dict[str, int]:
    """Return keys of single syscalls and clients that never expire."""
    left: Counter[str] = Counter()
    for raw in client.scan_iter("rq:*", count=1000):
        key = raw.decode(errors="replace")
        if key.startswith("rq:aios:snapshot:"):
            left["rq:aios:snapshot:*"] += 1
        elif key.startswith(PASSING) and client.ttl(raw) == -1:
            left[f"{key.rstrip('0123456789abcdef')}* that never expires"] += 1
    return dict(left)
