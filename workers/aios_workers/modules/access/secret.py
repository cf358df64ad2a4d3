"""The kernel's secret outlives Redis: Postgres has it, and gives it back."""

from aios_broker.postgres.store import Store, only_row
from aios_broker.queues.secret import KernelSecret

_KEEP = "INSERT INTO kernel_secret (name, value) VALUES ('ids', %s) ON CONFLICT DO NOTHING"
_KEPT = "SELECT value FROM kernel_secret WHERE name = 'ids'"


async def keep_secret(store: Store, secret: KernelSecret) -> None:
    """Enter the one that Redis has where there is none; else Redis gets the one that there is."""
    known = await secret.read()
    async with store.as_steward() as cursor:
        await cursor.execute(_KEEP, (known,))
        await cursor.execute(_KEPT)
        kept = bytes((await only_row(cursor)).value)
    if kept != known:
        await secret.restore(kept)
