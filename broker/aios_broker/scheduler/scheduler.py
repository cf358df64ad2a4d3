"""The scheduler service: leads, keeps the queues in order, and sees to what times out.

It keeps nothing that is not in Redis. Killed, it leaves the queues in their last order, and
workers go on from there, first in, first out; started again, or replaced by a standby, it goes
on. One scheduler leads at a time, by a lease; each change carries the epoch of its leadership, so
that one that was replaced and does not know it yet changes nothing.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from aios_broker.contract.errors import InvalidConfig, RedisFull, RedisUnavailable, Unavailable
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.ledger import Ledger
from aios_broker.ledger.spill import Spill
from aios_broker.metrics.kernel import SchedulerStats, read_kernel
from aios_broker.postgres.database import SERVICE_TIMEOUT_S, Database
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.order import ROUTED, Order
from aios_broker.queues.secret import KernelSecret
from aios_broker.redis.connection import Connection
from aios_broker.retry import Outages, Step, repeat
from aios_broker.scheduler.append_file import rewrite_where_tokens_were
from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.scheduler.ordering import ModuleOrder
from aios_broker.scheduler.policy import policy_named
from aios_broker.scheduler.ranking import LeadershipLost

logger = logging.getLogger(__name__)

TICK_S = 0.02  # while jobs wait and their order changes ...
IDLE_S = 0.2  # ... and, by and by, when nothing changes
RENEWALS = 4  # of leadership, per lease
ASKS = 10  # of a standby, per lease
RENEWAL_GRACE_S = 2.0  # workers notice a Redis that is back within a second, and renew
MOVE_EVERY_S = 0.1  # how long an idle core waits for what stands before an equal one
DRAIN_EVERY_S = 0.2
DRAIN_PAUSE_S = 0.01  # between two batches: everything else gets its turn
DRAIN_REST = 3.0  # ... and while the ledger is not far behind, so many times what a batch took
SPILL_EVERY_S = 1.0
FORGET_EVERY_S = 600.0
FORGET_PAUSE_S = 0.1  # between two batches
DAY_MS = 24 * 3600 * 1000
LAG_ENTRIES = 20_000  # journal entries that wait for the ledger before it is said
LAG_SAID_EVERY_S = 60.0
METRICS_EVERY_S = 2.0
STOP_LEASE_S = 0.001  # what a scheduler that stops in good order leaves of its lease

Correction = Literal["reclaimed", "expired", "reconciled"]
# What puts jobs right that nobody else would: the step, its pause in s, and how it is said.
CORRECTIONS: dict[Correction, tuple[Callable[[Order, int], Awaitable[int]], float, int, str]] = {
    "reclaimed": (
        Order.reclaim,
        0.5,
        logging.WARNING,
        "were taken back from workers that died or hang",
    ),
    "expired": (Order.expire, 0.25, logging.INFO, "outlived their deadlines"),
    "reconciled": (
        Order.reconcile,
        1.0,
        logging.INFO,
        "that stock RQ tools changed were put right",
    ),
}


@dataclass(frozen=True, slots=True)
class _Term:
    """One leadership."""

    epoch: int
    clock_offset_s: float  # Redis' clock less this process's monotonic one

    def now_ms(self) -> int:
        """Return the time by Redis' clock, without asking it."""
        return round((time.monotonic() + self.clock_offset_s) * 1000)


class Scheduler:
    """Leads or stands by until it is cancelled."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._redis = Connection(config.redis_url, name="aios-scheduler")
        self._functions = Functions(self._redis)
        self._keys = Keys(config.key_prefix)
        self._control = Control(self._functions, self._keys)
        self._orders = [Order(self._functions, module, self._keys) for module in MODULES]
        self._routed = next(order for order in self._orders if order.module == ROUTED)
        default = policy_named(config.policy)
        self._queues = [ModuleOrder(order, self._control, default) for order in self._orders]
        self._databases: list[Database] = []
        self._term: _Term | None = None
        self._leading = asyncio.Event()
        self._lease_ends_s = 0.0  # monotonic
        self._began_s = 0.0  # monotonic: when it began to lead, or came back after an outage
        self._tick_s = IDLE_S
        self._lag_said_s = float("-inf")
        self.stats = SchedulerStats()
        self._seen_epoch = 0  # the highest, of whichever scheduler
        self._swept_epoch = 0  # the leadership that has looked for what the one before left

    async def run(self) -> None:
        """Serve until cancelled; then give up the lead, so that a standby need not wait.

        Raises:
            InvalidConfig: this Redis cannot serve keys of such a prefix.
        """
        outages = Outages()
        try:
            async with asyncio.TaskGroup() as group:
                for name, step in self._tasks().items():
                    task = repeat(name, step, outages, ended_by=(InvalidConfig,))
                    group.create_task(task, name=name)
        except ExceptionGroup as failed:
            if refused := failed.subgroup(InvalidConfig):
                raise refused.exceptions[0] from None
            raise
        finally:
            await self._resign()
            for database in self._databases:
                await database.aclose()
            await self._redis.aclose()

    def _tasks(self) -> dict[str, Step]:
        tasks = {
            "lead": self._lead,
            "order": self._led(self._tick),
            "sweep": self._led(self._sweep_queues),
            "reclaim": self._led(self._reclaim),
            "expire": self._led(partial(self._put_right, "expired")),
            "move": self._led(self._move),
            "reconcile": self._led(partial(self._put_right, "reconciled")),
            "append file": self._led(self._rewrite),
        }
        if self._config.metrics_port is not None:
            tasks["metrics"] = self._led(self._read_metrics)
        if self._config.database_url is None:
            logger.warning("AIOS_DATABASE_URL is not set: no ledger is kept")
            return tasks
        ledger = Ledger(self._database(self._config.database_url), self._keys)
        aside = self._database(self._config.database_url)  # what must not make the ledger wait
        spill = Spill(self._redis, aside, self._orders[0])
        tasks["ledger"] = self._led(lambda term: self._drain(ledger, term))
        tasks["spill"] = self._led(lambda term: self._spill(spill, term))
        if keep_days := self._config.ledger_keep_days:
            old = Ledger(aside, self._keys)
            tasks["retention"] = self._led(lambda term: self._forget(old, keep_days, term))
        return tasks

    async def _rewrite(self, _: _Term) -> float:
        return await rewrite_where_tokens_were(self._redis, self._keys)

    def _database(self, url: str) -> Database:
        database = Database(url, name="aios-scheduler", limit_s=SERVICE_TIMEOUT_S)
        self._databases.append(database)
        return database

    # Leadership.

    def _led(self, step: Callable[[_Term], Awaitable[float]]) -> Step:
        """Return the step as a task of whoever leads: it waits while another does."""

        async def when_leading() -> float:
            await self._leading.wait()
            assert self._term is not None
            try:
                return await step(self._term)
            except LeadershipLost:
                self._stand_down("another scheduler took over")
                return 0.0

        return when_leading

    async def _lead(self) -> float:
        """Take or renew the lease of leadership, or see that another holds it."""
        lease_s = self._config.scheduler_lease_s
        asked_s = time.monotonic()
        try:
            answer = await self._orders[0].lead(self._holder, lease_s, seen_epoch=self._seen_epoch)
        except RedisUnavailable:
            if time.monotonic() > self._lease_ends_s:
                self._stand_down("Redis is away, and the lease of leadership ran out")
            raise
        self._seen_epoch = max(self._seen_epoch, answer.epoch)
        if not answer.leading:
            self._stand_down("another scheduler leads")
            return lease_s / ASKS
        if answer.began:
            self._stand_down("its lease was gone: it ran out, or Redis lost its data")
        self._lease_ends_s = asked_s + lease_s
        term = _Term(answer.epoch, answer.now_ms / 1000 - time.monotonic())
        if self._term is None or self._term.epoch != term.epoch:
            await self._begin(term)
        self._term = term
        self.stats.epoch = term.epoch
        self._leading.set()
        return lease_s / RENEWALS

    async def _begin(self, term: _Term) -> None:
        """Begin to lead: our functions, our policy if none stands, and nothing remembered."""
        self._began_s = time.monotonic()
        try:
            await self._functions.load()
            await self._publish_policies()
            await KernelSecret(self._redis, self._keys).read()  # others may not make it
        except RedisFull as error:  # what is there goes on; jobs must end, or it stays full
            logger.warning("the functions and the policy are not published: %s", error)
        for queue in self._queues:
            queue.forget()
        logger.info("scheduler %s leads, epoch %d", self._holder, term.epoch)

    def _stand_down(self, why: str) -> None:
        if self._leading.is_set():
            logger.warning("scheduler %s does not lead any more: %s", self._holder, why)
        self._leading.clear()
        self._term = None
        self.stats.epoch, self.stats.kernel = 0, None

    async def _resign(self) -> None:
        if self._leading.is_set():
            with contextlib.suppress(Unavailable):
                await self._orders[0].lead(self._holder, STOP_LEASE_S, seen_epoch=self._seen_epoch)

    async def _publish_policies(self) -> None:
        """Publish the configured policy where none is, and everywhere if it was changed.

        What was configured is kept beside what is published: a scheduler that is started again
        with the same settings leaves alone what was changed while the kernel ran.
        """
        row = self._config.policy_row()
        configured, key = msgspec.json.encode(row), self._keys.own("configured")
        changed = await self._redis.execute("HGET", key, "policy") != configured
        for module in MODULES:
            published = await self._redis.execute("EXISTS", self._keys.own(f"policy:{module}"))
            if changed or not published:
                await self._control.set_policy(module, row)
        await self._redis.execute("HSET", key, "policy", configured)

    # What a leader does.

    async def _tick(self, term: _Term) -> float:
        """Decide, in all queues, who is next."""
        began_s = time.monotonic()
        changed = await _all([queue.decide(term.epoch, term.now_ms()) for queue in self._queues])
        self.stats.decisions += 1
        self.stats.decided_s += time.monotonic() - began_s
        self._tick_s = TICK_S if changed else min(2 * self._tick_s, IDLE_S)
        return self._tick_s

    async def _sweep_queues(self, term: _Term) -> float:
        """Bring a piece of each long queue into order, where that is due."""
        busy = await _all([queue.sweep(term.epoch, term.now_ms()) for queue in self._queues])
        return TICK_S if busy else IDLE_S

    async def _reclaim(self, term: _Term) -> float:
        if (early_s := self._began_s + RENEWAL_GRACE_S - time.monotonic()) > 0:
            return early_s  # after an outage of Redis all leases are old: let workers renew them
        return await self._put_right("reclaimed", term)

    async def _put_right(self, what: Correction, term: _Term) -> float:
        """Take a step for all modules at once, and say where it found something."""
        step, pause_s, level, text = CORRECTIONS[what]
        counts = await asyncio.gather(*(step(order, term.epoch) for order in self._orders))
        for order, count in zip(self._orders, counts, strict=True):
            if count:
                self.stats.done[what] += count
                logger.log(level, "module %s: %d jobs %s", order.module, count, text)
        return pause_s

    async def _move(self, term: _Term) -> float:
        """Take jobs from cores that do not serve them to others that do."""
        moved, ended = await self._routed.move(term.epoch)
        if moved:
            self.stats.done["moved"] += moved
            logger.info("%d jobs went to another core that their names lead to", moved)
        if ended:
            logger.warning("%d jobs ended: their core was removed", ended)
        return TICK_S if moved or ended else MOVE_EVERY_S

    async def _drain(self, ledger: Ledger, term: _Term) -> float:
        began_s = time.monotonic()
        try:
            if self._swept_epoch != term.epoch:
                await ledger.forget_snapshots()
                self._swept_epoch = term.epoch
            drained = await ledger.drain(self._redis)
        except Unavailable:
            await self._report_lag()
            raise
        self.stats.done["ledger_transitions"] += drained.transitions
        if drained.behind > LAG_ENTRIES:
            await self._report_lag()
            return DRAIN_PAUSE_S
        # A burst is answered first and entered afterwards: nobody waits for the ledger.
        rest_s = DRAIN_REST * (time.monotonic() - began_s)
        return max(DRAIN_PAUSE_S, rest_s) if drained.behind else DRAIN_EVERY_S

    async def _report_lag(self) -> None:
        """Say how far the ledger is behind, now and then."""
        behind = await self._redis.execute("XLEN", self._keys.journal)
        if behind > LAG_ENTRIES and time.monotonic() - self._lag_said_s > LAG_SAID_EVERY_S:
            self._lag_said_s = time.monotonic()
            logger.warning("the ledger is %d journal entries behind", behind)

    async def _read_metrics(self, term: _Term) -> float:
        """Read what the page of metrics shows of the kernel."""
        state = await read_kernel(self._redis, self._control, self._keys)
        if self.stats.epoch == term.epoch:
            self.stats.kernel = state
        return METRICS_EVERY_S

    async def _spill(self, spill: Spill, term: _Term) -> float:
        spilled = await spill.run(term.epoch, self._config.snapshot_budget_bytes)
        if spilled.snapshots:
            logger.info(
                "%d snapshots (%d bytes) were moved to Postgres",
                spilled.snapshots,
                spilled.moved_bytes,
            )
        return DRAIN_PAUSE_S if spilled.snapshots and spilled.over_bytes > 0 else SPILL_EVERY_S

    async def _forget(self, ledger: Ledger, keep_days: int, term: _Term) -> float:
        forgotten = await ledger.forget(term.now_ms() - keep_days * DAY_MS)
        if forgotten.entries or forgotten.syscalls:
            logger.info(
                "the ledger forgot %d journal entries and %d syscalls that are older than "
                "AIOS_LEDGER_KEEP_DAYS",
                forgotten.entries,
                forgotten.syscalls,
            )
        return FORGET_PAUSE_S if forgotten.more else FORGET_EVERY_S


async def _all(steps: Sequence[Awaitable[bool]]) -> bool:
    """Take steps at once, each to its end; return whether any of them did something."""
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return any(outcomes)
