"""Who serves a module: its live workers, whether the fleet is suspended, who leads the order."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

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


class Fleet:
    """Reads what the processes of a kernel say of themselves in Redis."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def live_workers(self) -> list[WorkerView]:
        """Return the workers whose heartbeat is fresh, by name."""
        now = await self.now()
        names = await self._connection.execute("SMEMBERS", self._keys.workers)
        asked = (
            self._connection.execute(
                "HMGET", key, "queues", "last_heartbeat", "aios_slots", "aios_cores", "state"
            )
            for key in names
        )
        found = []
        for key, fields in zip(names, await asyncio.gather(*asked), strict=True):
            name = key.decode().removeprefix(self._keys.worker(""))
            worker = _worker(name, [field.decode() if field else "" for field in fields], now)
            if worker is not None and worker.heartbeat_age_s < SILENT_S:
                found.append(worker)
        return sorted(found, key=lambda worker: worker.name)

    async def suspended(self) -> bool:
        """Tell whether `rq suspend` keeps the workers from taking anything new."""
        return bool(await self._connection.execute("EXISTS", self._keys.suspended))

    async def leading_scheduler(self) -> str | None:
        """Return the name of the scheduler that leads, or None while none does."""
        holder, until_ms = await self._connection.execute(
            "HMGET", self._keys.own("scheduler"), "holder", "until"
        )
        if holder is None or int(until_ms or 0) < (await self.now()).timestamp() * 1000:
            return None
        return str(holder.decode())

    async def now(self) -> datetime:
        """Return the time by Redis' clock, the one that decisions use."""
        seconds, microseconds = await self._connection.execute("TIME")
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
        name=name,
        module=",".join(dict.fromkeys(name.partition(".")[0] for name in queues.split(","))),
        slots=int(slots or 1),
        cores=tuple(core for core in cores.split(",") if core),
        state=state,
        heartbeat_age_s=(now - seen).total_seconds(),
    )
