"""Find the server to talk to among those that a URL names: the master, or a cluster's node."""

import asyncio
from collections.abc import Sequence

import hiredis

from aios_broker.contract.errors import RedisUnavailable
from aios_broker.redis.address import Address
from aios_broker.redis.wire import Wire, dial

SECOND_MASTER_S = 0.25  # how long the others are waited for when one says that it is the master
FAILURES = (OSError, TimeoutError, hiredis.ReplyError, RedisUnavailable)


async def seek(addresses: Sequence[Address], name: str) -> Wire:
    """Connect to the one master, or to whichever node of a cluster answers first.

    Which one is the master is asked each time: after a failover it is another.

    Raises:
        ConnectionError: there is none, or more than one (then nothing is guessed).
        OSError, hiredis.ReplyError, RedisUnavailable: of the only server.
    """
    if len(addresses) == 1:
        wire = await dial(addresses[0], name)
        if wire.role == "replica" and not wire.clustered:
            wire.close()
            raise ConnectionError("it is a replica: name its master, too")
        return wire
    tries = {asyncio.create_task(dial(at, name)): at for at in addresses}
    chosen: Wire | None = None
    try:
        chosen = await _one_master(tries)
        return chosen
    finally:
        for task in tries:
            task.cancel()
        for outcome in await asyncio.gather(*tries, return_exceptions=True):
            if isinstance(outcome, Wire) and outcome is not chosen:
                outcome.close()


async def _one_master(tries: dict[asyncio.Task[Wire], Address]) -> Wire:
    masters: list[Wire] = []
    others: list[str] = []
    pending = set(tries)
    while pending:
        done, pending = await asyncio.wait(
            pending,
            return_when=asyncio.FIRST_COMPLETED,
            timeout=SECOND_MASTER_S if masters else None,
        )
        if not done:
            break  # those that are silent are no masters
        for task in done:
            if error := task.exception():
                others.append(f"{tries[task]}: {_reason(error)}")
            elif (wire := task.result()).clustered:
                return wire
            elif wire.role == "replica":
                others.append(f"{tries[task]} is a replica")
            else:
                masters.append(wire)
    if len(masters) == 1:
        return masters[0]
    if masters:
        names = " and ".join(str(wire.address) for wire in masters)
        raise ConnectionError(f"{names} each say that they are master: demote all but one")
    raise ConnectionError("; ".join(others))


def _reason(error: BaseException) -> str:
    """Say why a server could not be reached; raise what is no such error."""
    if not isinstance(error, FAILURES):
        raise error
    return str(error) or "no answer"
