"""Who serves a module: its live workers, whether the fleet is suspended, who leads the order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from aios_broker.cli.client import KernelClient

SILENT_S = 15.0  # a worker without a heartbeat for this long is not counted as living


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One live worker, as it shows itself in RQ's worker record."""

    name: str
    module: str
    slots: int
    cores: tuple[str, ...]
    state: str  # RQ's: busy or idle
    heartbeat_age_s: float


async def live_workers(client: KernelClient) -> list[WorkerView]:
    """Return the workers whose heartbeat is fresh, by name."""
    now = await redis_now(client)
    found = []
    for key in await client.connection.execute("SMEMBERS", client.keys.workers):
        fields = await client.connection.execute(
            "HMGET", key, "queues", "last_heartbeat", "aios_slots", "aios_cores", "state"
        )
        name = key.decode().removeprefix(client.keys.worker(""))
        worker = _worker(name, [field.decode() if field else "" for field in fields], now)
        if worker is not None and worker.heartbeat_age_s < SILENT_S:
            found.append(worker)
    return sorted(found, key=lambda worker: worker.name)


async def fleet_suspended(client: KernelClient) -> bool:
    """Tell whether `rq suspend` keeps the workers from taking anything new."""
    return bool(await client.connection.execute("EXISTS", client.keys.suspended))


async def leading_scheduler(client: KernelClient) -> str | None:
    """Return the name of the scheduler that leads, or None while none does."""
    holder, until_ms = await client.connection.execute(
        "HMGET", client.keys.own("scheduler"), "holder", "until"
    )
    if holder is None or int(until_ms or 0) < (await redis_now(client)).timestamp() * 1000:
        return None
    return str(holder.decode())


async def redis_now(client: KernelClient) -> datetime:
    """Return the time by Redis' clock, the one that decisions use."""
    seconds, microseconds = await client.connection.execute("TIME")
    return datetime.fromtimestamp(int(seconds) + int(microseconds) / 1e6, UTC)


def _worker(name: str, fields: list[str], now: datetime) -> WorkerView | None:
    """Read RQ's record; a stock worker has no slots of ours: it runs one job at a time."""
    queues, heartbeat, slots, cores, state = fields
    try:
        seen = datetime.fromisoformat(heartbeat)
    except ValueError:
        return None
    seen = seen if seen.tzinfo else seen.replace(tzinfo=UTC)
    return WorkerView(
        name=name, module=queues, slots=int(slots or 1),
        cores=tuple(core for core in cores.split(",") if core), state=state,
        heartbeat_age_s=(now - seen).total_seconds(),
    )  # fmt: skip
