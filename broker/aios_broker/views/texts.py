"""What a syscall asked and was answered, as far as Redis keeps it: a minute, or an hour."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from aios_broker.contract.errors import KernelError
from aios_broker.contract.job import decode_job
from aios_broker.contract.reply import Reply, decode_reply
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

T = TypeVar("T")
_FIELDS = ("data", "aios_reply")  # of a job's record


@dataclass(frozen=True, slots=True)
class Texts:
    """The request and its answer; None where it is not kept, is too long, or a foreign job's."""

    syscall: Syscall | None = None  # without its token
    reply: Reply | None = None
    too_long_bytes: int = 0  # of what is kept and was not read


async def read_texts(
    connection: Connection, keys: Keys, job_ids: Sequence[str], most_bytes: int | None = None
) -> Mapping[str, Texts]:
    """Return what is kept of each syscall; what has more than `most_bytes` is not read."""

    async def read(job_id: str) -> Texts:
        key = keys.job(job_id)
        names, too_long = [*_FIELDS], 0
        if most_bytes is not None:
            sizes = [await connection.execute("HSTRLEN", key, name) for name in _FIELDS]
            names = [name for name, size in zip(_FIELDS, sizes, strict=True) if size <= most_bytes]
            too_long = sum(size for size in sizes if size > most_bytes)
        kept = await connection.execute("HMGET", key, *names) if names else []
        fields = dict(zip(names, kept, strict=True))
        return _texts(job_id, fields.get("data"), fields.get("aios_reply"), too_long)

    found = await asyncio.gather(*map(read, job_ids))
    return dict(zip(job_ids, found, strict=True))


def _texts(job_id: str, data: bytes | None, reply: bytes | None, too_long: int) -> Texts:
    syscall = _decoded(data, lambda kept: decode_job(kept, job_id))
    if syscall is not None:
        syscall = msgspec.structs.replace(syscall, token="")
    return Texts(syscall, _decoded(reply, decode_reply), too_long)


def _decoded(data: bytes | None, decode: Callable[[bytes], T]) -> T | None:
    """Return what was kept; None where nothing was, or nothing that is ours."""
    with suppress(KernelError, msgspec.DecodeError):
        return None if data is None else decode(data)
    return None
