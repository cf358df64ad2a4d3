"""What follows a decision: the parked job goes on, requests expire, people are told.

A decision is committed in Postgres first. The worker that decided puts the job back at once; what
a crash left undone, and what nobody decided in time, a sweep finds within a second. One process of
the fleet sweeps at a time (an advisory lock).
"""

import asyncio
import hashlib
import hmac
import logging
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from aios_broker.contract.access import Approval
from aios_broker.contract.errors import KernelError
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import module_of
from aios_broker.postgres.session import Store, only_row
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_workers.approvals.requests import list_approvals

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
BATCH = 200  # approvals of one sweep
POST_LIMIT_S = 5.0
SIGNATURE = "X-AIOS-Signature"  # sha256=<HMAC-SHA256 of the body, hex>
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('aios.approvals', 0)) AS ours"
_EXPIRE = """
    UPDATE approval SET state = 'expired'
     WHERE state IN ('waiting', 'approved') AND expires_at <= now()
"""
_DECIDED = f"""
    SELECT id, job_id, module FROM approval
     WHERE state IN ('approved', 'denied', 'expired') AND resumed_at IS NULL
     ORDER BY asked_at LIMIT {BATCH}
"""
_RESUMED = "UPDATE approval SET resumed_at = now() WHERE id = ANY(%s)"
_WAITING = f"""
    SELECT id, job_id, module FROM approval WHERE state = 'waiting' ORDER BY random() LIMIT {BATCH}
"""
_ENDED = """
    UPDATE approval SET state = 'expired', reason = 'its syscall has ended', resumed_at = now()
     WHERE id = ANY(%s) AND state = 'waiting'
"""
_UNTOLD = "SELECT id FROM approval WHERE state = 'waiting' AND announced_at IS NULL LIMIT 20"
_TOLD = "UPDATE approval SET announced_at = now() WHERE id = ANY(%s)"


class Webhook:
    """Where people are told of what waits for them; told at least once."""

    def __init__(self, url: str, secret: str = "") -> None:
        self.url = url
        self._secret = secret.encode()

    async def post(self, approval: Approval) -> bool:
        """Tell of one approval, off the event loop; False: to be tried again."""
        return await asyncio.to_thread(self._post, msgspec.json.encode(approval))

    def _post(self, content: bytes) -> bool:
        signature = hmac.new(self._secret, content, hashlib.sha256).hexdigest()
        request = urllib.request.Request(
            self.url,
            data=content,
            method="POST",
            headers={"Content-Type": "application/json", SIGNATURE: f"sha256={signature}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=POST_LIMIT_S):
                return True
        except (urllib.error.URLError, OSError) as error:
            logger.warning("the approval webhook did not take it, it is tried again: %s", error)
            return False


class ApprovalSweep:
    """Brings jobs back whose approval is decided, and expires what nobody decided."""

    def __init__(
        self, store: Store, functions: Functions, keys: Keys, webhook: Webhook | None = None
    ) -> None:
        self._store = store
        self._control = Control(functions, keys)
        self._webhook = webhook

    async def resume(self, approval: Approval) -> None:
        """Put the job of a decided approval back; the sweep does what fails here."""
        try:
            await self._unpark([(approval.id, approval.syscall_id, module_of(approval.kind))])
        except KernelError as error:
            logger.warning("a decided syscall goes on with the next sweep: %s", error)

    async def step(self) -> float:
        """Sweep once; return how long to wait before the next time, in s."""
        await self.sweep()
        return PAUSE_S

    async def sweep(self) -> int:
        """Do all that is due; return how many jobs went on: 0 where another process does it."""
        async with self._store.as_steward() as cursor:
            await cursor.execute(_LOCK)
            if not (await only_row(cursor)).ours:
                return 0
            await cursor.execute(_EXPIRE)
            await cursor.execute(_WAITING)
            waiting = await cursor.fetchall()
            await cursor.execute(_ENDED, (await self._ended(waiting),))
        async with self._store.as_steward() as cursor:
            await cursor.execute(_DECIDED)
            decided = await cursor.fetchall()
        await self._announce()
        return await self._unpark(decided)

    async def _ended(self, waiting: Iterable[Any]) -> list[str]:
        ended = []
        for module, part in _by_module(tuple(row) for row in waiting).items():
            alive = await self._control.live([job for _, job in part], module=module)
            ended += [each for (each, _), lives in zip(part, alive, strict=True) if not lives]
        return ended

    async def _unpark(self, decided: Iterable[tuple[str, str, str]]) -> int:
        done: list[str] = []
        for module, part in _by_module(decided).items():
            words = await self._control.unpark([job for _, job in part], module=module)
            # elsewhere: it runs just now, and may be about to be parked.
            done += [
                each for (each, _), word in zip(part, words, strict=True) if word != "elsewhere"
            ]
        if done:
            async with self._store.as_steward() as cursor:
                await cursor.execute(_RESUMED, (done,))
        return len(done)

    async def _announce(self) -> None:
        if self._webhook is None:
            return
        async with self._store.as_steward() as cursor:
            await cursor.execute(_UNTOLD)
            untold = {row.id for row in await cursor.fetchall()}
            waiting = await list_approvals(cursor, "waiting", 1_000) if untold else ()
        told = [one.id for one in waiting if one.id in untold and await self._webhook.post(one)]
        if told:
            async with self._store.as_steward() as cursor:
                await cursor.execute(_TOLD, (told,))


def _by_module(rows: Iterable[tuple[str, str, str]]) -> dict[Module, list[tuple[str, str]]]:
    found: dict[Module, list[tuple[str, str]]] = defaultdict(list)
    for each, job, module in rows:
        found[msgspec.convert(module, Module)].append((each, job))
    return found
