"""Syscalls that have ended and whose records are still there: a minute, an hour of failures."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec
from msgspec import Struct

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES, State, known_needs
from aios_broker.queues.control import Control
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import JobView, read_metadata
from aios_broker.redis.connection import Answer, Connection

REGISTRIES = ("finished", "failed", "canceled")  # RQ's names
_STATES: dict[bytes, State] = {
    b"finished": "finished",
    b"failed": "failed",
    b"stopped": "failed",
    b"canceled": "cancelled",
}
_FIELDS = (
    "status",
    "aios_metadata",
    "aios_needs",
    "worker_name",
    "aios_attempt",
    "aios_slices",
    "aios_suspensions",
    "aios_losses",
    "aios_tokens",
    "aios_queued_ms",
    "aios_ran_ms",
    "aios_submitted_ms",
    "origin",
    "ended_at",
)


class _Error(Struct):
    code: str = ""


class _Failure(Struct):
    error: _Error | None = None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """One that has ended: what its record says, how long ago, and the code of its error."""

    job: JobView
    ago_s: float
    error: str = ""


async def queues_of(control: Control, modules: Sequence[Module] = MODULES) -> list[str]:
    """Return the queues of modules: their own, and those of the cores that are known."""
    cores = [f"llm.{view.card.name}" for view in await control.cores()] if "llm" in modules else []
    return [*modules, *cores]


async def ended_ids(connection: Connection, keys: Keys, queues: Sequence[str]) -> list[str]:
    """Return the ids of all that has ended in these queues and is still known."""
    found = await asyncio.gather(
        *(
            connection.execute("ZRANGE", keys.registry(name, queue), 0, -1)
            for queue in queues
            for name in REGISTRIES
        )
    )
    return [member.decode() for members in found for member in members]


async def recently_ended(
    connection: Connection, keys: Keys, queues: Sequence[str], limit: int
) -> list[EndedJob]:
    """Return the last `limit` syscalls of these queues that have ended, the newest first."""
    found = await asyncio.gather(
        *(
            connection.execute("ZRANGE", keys.registry(name, queue), 0, limit - 1, "REV")
            for queue in queues
            for name in REGISTRIES
        )
    )
    ids = [member.decode() for members in found for member in members]
    now_s, rows = await asyncio.gather(
        _now_s(connection),
        asyncio.gather(*(connection.execute("HMGET", keys.job(one), *_FIELDS) for one in ids)),
    )
    read = (_ended_job(one, row, now_s) for one, row in zip(ids, rows, strict=True))
    known = sorted((one for one in read if one is not None), key=lambda one: one.ago_s)[:limit]
    return await asyncio.gather(*(_with_error(connection, keys, one) for one in known))


async def _with_error(connection: Connection, keys: Keys, ended: EndedJob) -> EndedJob:
    if ended.job.state == "finished":  # whose reply may be large
        return ended
    reply = await connection.execute("HGET", keys.job(ended.job.job_id), "aios_reply")
    return replace(ended, error=_error_of(reply))


async def _now_s(connection: Connection) -> float:
    seconds, micros = await connection.execute("TIME")
    return int(seconds) + int(micros) / 1e6


def _ended_job(job_id: str, row: Sequence[Answer], now_s: float) -> EndedJob | None:
    """Return what a record says; None where it is gone, or its job lives again."""
    status, metadata, needs, worker, *counts, origin, ended_at = row
    state = _STATES.get(status or b"")
    if state is None:
        return None
    attempt, slices, suspensions, losses, tokens, queued_ms, ran_ms, submitted_ms = (
        int(count or 0) for count in counts
    )
    queue = (origin or b"").decode()
    job = JobView(
        job_id=job_id,
        module=queue.partition(".")[0],
        state=state,
        metadata=read_metadata(metadata or b""),
        needs=known_needs((needs or b"").decode()),
        worker=(worker or b"").decode(),
        attempt=attempt,
        slices=slices + (attempt > 0),  # the last one is not in its record
        suspensions=suspensions,
        losses=losses,
        tokens=tokens,
        queued_s=queued_ms / 1000,
        ran_s=ran_ms / 1000,
        age_s=now_s - submitted_ms / 1000 if submitted_ms else 0.0,
        deadline_in_s=None,
        position=None,
        score=None,
        queue=queue,
    )
    return EndedJob(job, max(0.0, now_s - _moment_s(ended_at or b"", now_s)))


def _moment_s(iso: bytes, unknown: float) -> float:
    """Return a time stamp of RQ's as Unix time."""
    try:
        return datetime.fromisoformat(iso.decode()).timestamp()
    except ValueError:
        return unknown


def _error_of(reply: bytes | None) -> str:
    if reply is None:
        return ""
    try:
        failure = msgspec.json.decode(reply, type=_Failure)
    except msgspec.DecodeError:
        return ""
    return failure.error.code if failure.error else ""
