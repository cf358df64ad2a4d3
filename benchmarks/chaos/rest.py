"""What is left over when nothing runs: keys, leases, connections."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, cast

import msgspec
import redis

from aios_broker.contract.syscall import MODULES

# Places where a live syscall stands: empty at rest.
PLACES = (
    "live",
    "leases",
    "deadlines",
    "scores",
    "suspending",
    "held",
    "parked",
    "control",
    "suspects",
)
RQ_PLACES = ("queue", "wip", "deferred")
SNAPSHOTS = ("snapshots", "snapshot_bytes")
# Keys of one syscall or one client: each must expire by itself once it is over, or stand in a list
# of those that are deleted later (queues/lua/shared/ended.lua).
PASSING = ("rq:job:", "rq:results:", "rq:execution:", "rq:aios:reply:", "rq:aios:context")
OVERDUE_S = 60.0  # behind a burst the sweep may be late; clocks were jumped, too
CLIENT_CONNECTIONS = ("aios-client", "aios-replies", "chaos-")
ENDED = "rq:aios:ended:"  # lists of a queue whose sweep deletes what finished
SIZES = {"list": "llen", "hash": "hlen", "zset": "zcard", "set": "scard", "stream": "xlen"}


def left_over(client: Any) -> dict[str, int]:
    """Return what should be empty, gone or expiring, and is not: name -> how much of it.

    Args:
        client: A redis.Redis of the kernel's server.
    """
    keys = [f"rq:aios:{name}" for name in SNAPSHOTS]
    for queue in _queues(client):
        keys += [f"rq:aios:{name}:{queue}" for name in PLACES]
        keys += [f"rq:{name}:{queue}" for name in RQ_PLACES]
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


def _queues(client: Any) -> set[str]:
    """Return the queues of all modules: a core has one of its own, `llm.NAME`."""
    found = {str(module) for module in MODULES}
    for raw in client.scan_iter("rq:*", count=1000):
        key = raw.decode(errors="replace")
        found |= {key[len(ENDED) :]} if key.startswith(ENDED) else set()
        found |= {
            key.removeprefix(f"rq:{each}:") for each in RQ_PLACES if key.startswith(f"rq:{each}:")
        }
    return found


def _size(client: Any, key: str) -> int:
    kind = client.type(key).decode()
    return int(getattr(client, SIZES[kind])(key)) if kind != "none" else 0


def _without_end(client: redis.Redis) -> dict[str, int]:
    """Return keys of single syscalls and clients that never expire."""
    left: Counter[str] = Counter()
    swept = _to_be_swept(client)
    for raw in client.scan_iter("rq:*", count=1000):
        key = raw.decode(errors="replace")
        if key.startswith("rq:aios:snapshot:"):
            left["rq:aios:snapshot:*"] += 1
        elif key.startswith(PASSING) and key not in swept and client.ttl(raw) == -1:
            left[f"{key.rstrip('0123456789abcdef')}* that never expires"] += 1
    return dict(left)


def _to_be_swept(client: redis.Redis) -> set[str]:
    """Return the keys of finished syscalls whose end stands in a list; none is long overdue."""
    swept: set[str] = set()
    for key in client.scan_iter(f"{ENDED}*", count=1000):
        for packed in cast("list[bytes]", client.lrange(key, 0, -1)):
            until_s, _, *ids = msgspec.msgpack.decode(packed)
            if until_s > time.time() - OVERDUE_S:
                swept |= {f"rq:{kind}:{job_id}" for job_id in ids for kind in ("job", "results")}
    return swept
