"""What agents and tenants use, and what they may use: counters and quotas of each module."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, get_args

from aios_broker.contract.errors import (
    AccessDenied,
    AgentSuspended,
    KernelError,
    QuotaExceeded,
)
from aios_broker.contract.money import shown
from aios_broker.contract.names import Module, tree_of
from aios_broker.queues.functions import Steps
from aios_broker.redis.connection import Answer

Scope = Literal["agent", "tenant", "program"]
LimitName = Literal[
    "max_queued",
    "max_running",
    "tokens_per_minute",
    "slot_seconds_per_minute",
    "budget_per_day",
    "budget_per_month",
    "min_nice",
    "max_contexts",
    "max_context_bytes",
    "max_unread",
]
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)
ANYBODY = "*"  # in place of a name: the limits of all that have none of their own
RETRY_AFTER_S = 1.0
RECOUNTED = 100  # jobs that are counted anew in one step: about 1 ms of Redis' time ...
RECOUNT_REST_S = 0.002  # ... and then others have their turn
_NONE = "-"
BUDGET_WINDOWS: dict[LimitName, str] = {"budget_per_day": "day", "budget_per_month": "month"}


@dataclass(frozen=True, slots=True)
class Subject:
    """Who uses: a tenant, an agent of a tenant, or a program of an agent."""

    scope: Scope
    tenant: str
    agent: str = ""
    program: str = ""

    def __str__(self) -> str:
        """Return the name that Redis knows it by."""
        return f"{self.scope}:" + " ".join(filter(None, (self.tenant, self.agent, self.program)))

    @classmethod
    def of_agent(cls, agent: str, tenant: str = "default") -> Subject:
        """Return an agent, or, for `*`, all agents."""
        return cls("agent", ANYBODY) if agent == ANYBODY else cls("agent", tenant, agent)

    @classmethod
    def of_tenant(cls, tenant: str) -> Subject:
        """Return a tenant, or, for `*`, all tenants."""
        return cls("tenant", tenant)

    @classmethod
    def of_program(cls, program: str, agent: str, tenant: str = "default") -> Subject:
        """Return one program of an agent, with all that stand in its tree."""
        return cls("program", tenant, agent, tree_of(program))

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Read a name as Redis knows it.

        Raises:
            KernelError: it is none.
        """
        scope, _, names = text.partition(":")
        match scope, names.split(" "):
            case "tenant", [tenant] if tenant:
                return cls("tenant", tenant)
            case "agent", ["*"]:
                return cls("agent", ANYBODY)
            case "agent", [tenant, agent]:
                return cls("agent", tenant, agent)
            case "program", [tenant, agent, program]:
                return cls("program", tenant, agent, program)
            case _:
                raise KernelError(f"{text!r} names no agent, tenant or program")

    @property
    def words(self) -> str:
        """Return it as people say it."""
        if self.scope == "program":
            return f"program {self.program!r} of agent {self.agent!r}"
        name = self.agent if self.scope == "agent" and self.agent else self.tenant
        return f"every {self.scope}" if name == ANYBODY else f"{self.scope} {name!r}"

    @property
    def full_words(self) -> str:
        """Return it as people say it who see agents of several tenants."""
        is_named = self.scope != "tenant" and self.tenant != ANYBODY
        return f"{self.words} of tenant {self.tenant!r}" if is_named else self.words


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in one day or month of the calendar, in UTC."""

    nano: int  # billionths of the currency
    currency: str

    def __str__(self) -> str:
        """Return it as people read it."""
        return shown(self.nano, self.currency)

    @classmethod
    def parse(cls, packed: str) -> Budget:
        """Read it as Redis keeps it."""
        digits = packed.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        return cls(int(digits), packed[len(digits) :])


@dataclass(frozen=True, slots=True)
class Spent:
    """What an agent or tenant spent in a day or month."""

    window: Literal["day", "month"]
    name: str  # of the day or month, such as 2026-11-28 or 2026-11
    currency: str
    subject: Subject
    nano: int


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """The limits of one agent or tenant in one module; None: no limit, or that of `*`."""

    subject: Subject
    max_queued: int | None = None  # that wait: suspended, held and parked ones, too
    max_running: int | None = None
    tokens_per_minute: int | None = None  # output and prompt
    slot_seconds_per_minute: float | None = None
    budget_per_day: Budget | None = None
    budget_per_month: Budget | None = None
    min_nice: int | None = None  # the least nice value; None, and no other of theirs: 0
    max_contexts: int | None = None  # stored ones of an agent; None: 1,000
    max_context_bytes: int | None = None  # of all of them; None: 256 MiB
    max_unread: int | None = None  # replies that a client of its leaves unread; None: 10,000

    def packed(self) -> str:
        """Return the limits as Redis keeps them."""
        return " ".join(_packed(getattr(self, name)) for name in LIMIT_NAMES)


@dataclass(frozen=True, slots=True)
class Use:
    """What a subject has used so far, or since its counters were last dropped."""

    tokens: int = 0  # output
    prompt_tokens: int = 0
    ran_s: float = 0.0  # slot-seconds
    finished: int = 0
    failed: int = 0  # ended otherwise: failed, cancelled, late
    cached_tokens: int = 0  # of the prompt tokens
    cost_nano: dict[str, int] = field(default_factory=dict)  # by currency


@dataclass(frozen=True, slots=True)
class UsageView:
    """The counters of one module."""

    module: str
    by_subject: dict[Subject, Use] = field(default_factory=dict)

    def of(self, subject: Subject) -> Use:
        """Return one subject's counters; zeros where it has none."""
        return self.by_subject.get(subject, Use())


@dataclass(frozen=True, slots=True)
class Barrier:
    """The quota that keeps a waiting syscall from running."""

    limit: LimitName
    subject: Subject
    used: float
    most: float
    opens_in_s: float | None  # None: when another one of theirs ends, or never
    currency: str = ""  # of a budget, whose numbers are nano-units


@dataclass(frozen=True, slots=True)
class Standing:
    """How an agent or a tenant stands by one of its limits."""

    most: float
    left: float  # below zero: it has used more than it may
    opens_in_s: float  # until all of it is there again; of what waits: not known, 0


@dataclass(frozen=True, slots=True)
class AgentStanding:
    """How an agent stands in a module, by its own limits and its tenant's: what binds it first."""

    min_nice: int = 0
    queued: Standing | None = None  # syscalls that may wait; None: no limit
    tokens: Standing | None = None  # of this minute


class Quotas(Steps):
    """Reads and changes the quotas of a deployment, and reads its counters."""

    async def rows(self, module: Module) -> list[QuotaRow]:
        """Return all quotas of a module, in the order of their names."""
        flat = await self._execute("HGETALL", self.keys.own(f"quota:{module}"))
        return [_row(*pair) for pair in sorted(zip(flat[::2], flat[1::2], strict=True))]

    async def set(self, module: Module, row: QuotaRow, *, who: str = "") -> None:
        """Give an agent or tenant these limits and no others, from the next step on.

        A row without limits meters a module that is not metered else. `who`: for the journal.
        """
        answer = await self._call("quota", module, [who, str(row.subject), row.packed()])
        if answer[1]:
            await self.recount(module)

    async def recount(self, module: Module) -> None:
        """Count anew what waits and runs of whom, a part at a time; jobs go on meanwhile."""
        more = True
        while more:
            more = bool(await self._call("recount", module, [RECOUNTED]))
            await asyncio.sleep(RECOUNT_REST_S)

    async def unset(self, module: Module, subject: Subject, *, who: str = "") -> bool:
        """Take away the limits of an agent or tenant; return whether it had any."""
        return bool((await self._call("quota", module, [who, str(subject), ""]))[0])

    async def remember_spent(self, module: Module, spent: Sequence[Spent]) -> None:
        """Take in what the ledger says was spent, where less is known: Redis may have lost it."""
        rows = [(one.window, one.name, one.currency, str(one.subject), one.nano) for one in spent]
        if rows:
            await self._call("spent", module, list(chain.from_iterable(rows)))

    async def spent(self, module: Module, fields: Sequence[str]) -> dict[str, str]:
        """Return what was spent, by `WINDOW CURRENCY SUBJECT`: the window's name, nano-units."""
        if not fields:
            return {}
        rows = await self._execute("HMGET", self.keys.own(f"spent:{module}"), *fields)
        return {field: row.decode() for field, row in zip(fields, rows, strict=True) if row}

    async def standings(self, module: Module, agent: str, tenant: str) -> AgentStanding:
        """Return how an agent stands: four reads of Redis in one round trip."""
        subjects = (Subject.of_agent(agent, tenant), Subject.of_tenant(tenant))
        rows, loads, buckets, (seconds, micros) = await asyncio.gather(
            self._execute("HMGET", self.keys.own(f"quota:{module}"), *_limited_by(subjects)),
            self._execute("HMGET", self.keys.own(f"load:{module}"), *(f"q {s}" for s in subjects)),
            self._execute(
                "HMGET", self.keys.own(f"bucket:{module}"), *(f"tokens {s}" for s in subjects)
            ),
            self._execute("TIME"),
        )
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        return _standings(_limits_of(subjects, rows), loads, buckets, now_ms)

    async def usage(self, module: Module, subjects: Sequence[Subject] | None = None) -> UsageView:
        """Return the counters of these subjects, or of all (costs their number)."""
        key = self.keys.own(f"use:{module}")
        if subjects is None:
            flat = await self._execute("HGETALL", key)
            pairs = [
                (Subject.parse(name.decode()), packed)
                for name, packed in zip(flat[::2], flat[1::2], strict=True)
            ]
        else:
            rows = await self._execute("HMGET", key, *map(str, subjects)) if subjects else []
            pairs = [
                (subject, packed) for subject, packed in zip(subjects, rows, strict=True) if packed
            ]
        return UsageView(module, {subject: read_use(packed) for subject, packed in pairs})


def refused(what: bytes, answer: Sequence[Answer]) -> QuotaExceeded | AccessDenied | AgentSuspended:
    """Return the error of a submit that its agent's limits, or its operator, refuse.

    Args:
        what: The first word of submit's answer, see `lua/client/submit.lua`.
        answer: What follows it.
    """
    if what == b"quota":
        return _over_quota(answer)
    who = Subject.parse(answer[0].decode())
    if what == b"nice":
        return nice_refused(who, answer[1], answer[2])
    return unread_refused(who, answer[1], answer[2]) if what == b"unread" else suspended(who)


def _over_quota(answer: Sequence[Answer]) -> QuotaExceeded:
    """Return the error for a refusal of submit: [limit, subject, used, most, wait_ms, currency]."""
    barrier = read_barrier(answer)
    who, most = barrier.subject.words, barrier.most
    if barrier.currency:
        window = BUDGET_WINDOWS[barrier.limit]
        return QuotaExceeded(
            f"{who} has spent {shown(int(barrier.used), barrier.currency)} this {window}, its "
            f"budget is {shown(int(most), barrier.currency)}",
            field=f"quota.{barrier.limit}",
            retry_after_s=barrier.opens_in_s,
            remedy=f"send it again when the {window} is over (UTC), or use a core without a price; "
            "an operator sees and sets budgets (`aios quota`)",
        )
    return QuotaExceeded(
        f"{who} has {barrier.used:.0f} syscalls waiting, its quota is {most:.0f}",
        field=f"quota.{barrier.limit}",
        retry_after_s=RETRY_AFTER_S,
        remedy="wait for some of them, then send it again; an operator sees and sets quotas "
        "(`aios quota`)",
    )


def nice_refused(who: Subject, nice: int, least: int) -> AccessDenied:
    """Return the error of a syscall that would go before others by more than it may."""
    return AccessDenied(
        f"{who.words} may not ask for nice {nice}, the least it may is {least}",
        field="nice",
        remedy="leave it out; an operator gives the right: `aios quota set "
        f"{who.agent} --tenant {who.tenant} --min-nice {nice}`",
    )


def unread_refused(who: Subject, replies: int, most: int) -> QuotaExceeded:
    """Return the error of a client that goes on sending and does not read what it is answered."""
    return QuotaExceeded(
        f"{replies} replies to this client of {who.words} are not read, it may leave {most}",
        field="quota.max_unread",
        retry_after_s=RETRY_AFTER_S,
        remedy="read replies while you send, or have the operator raise it (`aios quota set`)",
    )


def contexts_refused(who: Subject, limit: str, used: int, most: int) -> QuotaExceeded:
    """Return the error of a context that its agent has no room for."""
    what = "bytes of stored contexts" if limit == "max_context_bytes" else "stored contexts"
    return QuotaExceeded(
        f"{who.words} would have {used} {what}, it may have {most}",
        field=f"quota.{limit}",
        remedy="clear some (context.clear), or have the operator raise it (`aios quota set`)",
    )


def _limited_by(subjects: Sequence[Subject]) -> list[str]:
    """Return whose limits hold of an agent and its tenant: their own, then everybody's."""
    return [name for each in subjects for name in (str(each), f"{each.scope}:{ANYBODY}")]


def _limits_of(subjects: Sequence[Subject], rows: Sequence[bytes | None]) -> list[QuotaRow]:
    """Return the limits of each: its own, and where it has none those of everybody."""
    found = []
    for number, subject in enumerate(subjects):
        own, all_of_them = (
            _row(str(subject).encode(), row or b"") for row in rows[2 * number : 2 * number + 2]
        )
        limits = {
            name: getattr(all_of_them, name) for name in LIMIT_NAMES if getattr(own, name) is None
        }
        found.append(replace(own, **limits))
    return found


def _standings(
    limits: Sequence[QuotaRow],
    loads: Sequence[bytes | None],
    buckets: Sequence[bytes | None],
    now_ms: int,
) -> AgentStanding:
    queued, tokens = [], []
    for row, load, bucket in zip(limits, loads, buckets, strict=True):
        if row.max_queued is not None:
            queued.append(Standing(row.max_queued, row.max_queued - int(load or 0), 0.0))
        if row.tokens_per_minute is not None:
            tokens.append(_bucket_standing(row.tokens_per_minute, bucket, now_ms))
    nice = [row.min_nice for row in limits if row.min_nice is not None]
    return AgentStanding(
        nice[0] if nice else 0,
        min(queued, key=_left, default=None),
        min(tokens, key=_left, default=None),
    )


def _bucket_standing(most: int, bucket: bytes | None, now_ms: int) -> Standing:
    """Read a bucket as `level` of lua/shared/quota.lua does: it fills up in a minute."""
    left = float(most)
    if bucket is not None:
        level, at_ms = map(float, bucket.split())
        left = min(most, level + (now_ms - at_ms) * most / 60_000)
    return Standing(most, left, (most - left) * 60 / most if most else 60.0)


def _left(standing: Standing) -> float:
    return standing.left


def suspended(who: Subject) -> AgentSuspended:
    """Return the error of whatever a suspended agent, or an agent of a suspended tenant, asks."""
    named = (
        f"{who.agent} --tenant {who.tenant}" if who.scope == "agent" else f"--tenant {who.tenant}"
    )
    return AgentSuspended(
        f"an operator has suspended {who.words}",
        field=who.scope,
        remedy=f"an operator lets it go on: `aios agents resume {named}`",
    )


def read_barrier(row: Sequence[Answer]) -> Barrier:
    """Read what admission says of a quota."""
    limit, subject, used, most, wait_ms, *currency = row
    names: dict[str, LimitName] = {name: name for name in LIMIT_NAMES}
    return Barrier(
        limit=names[limit.decode()],
        subject=Subject.parse(subject.decode()),
        used=float(used),
        most=float(most),
        opens_in_s=wait_ms / 1000 if wait_ms >= 0 else None,
        currency=currency[0].decode() if currency else "",
    )


def _packed(value: float | Budget | None) -> str:
    if value is None:
        return _NONE
    return f"{value.nano}{value.currency}" if isinstance(value, Budget) else f"{value:.10g}"


def _row(subject: bytes, packed: bytes) -> QuotaRow:
    texts = [None if text == _NONE else text for text in packed.decode().split()]
    queued, running, tokens, slot_s, day, month, *others = [*texts, *[None] * len(LIMIT_NAMES)][
        : len(LIMIT_NAMES)
    ]
    return QuotaRow(
        Subject.parse(subject.decode()),
        _whole(queued),
        _whole(running),
        _whole(tokens),
        None if slot_s is None else float(slot_s),
        None if day is None else Budget.parse(day),
        None if month is None else Budget.parse(month),
        *map(_whole, others),
    )


def _whole(text: str | None) -> int | None:
    return None if text is None else int(float(text))


def read_use(packed: bytes) -> Use:
    """Read counters as Redis keeps them."""
    texts = packed.decode().split()
    costs = dict(text.split("=") for text in texts if "=" in text)
    tokens, prompt_tokens, ran_ms, finished, failed, cached = (
        int(text) for text in texts if "=" not in text
    )
    cost_nano = {currency: int(nano) for currency, nano in costs.items()}
    return Use(tokens, prompt_tokens, ran_ms / 1000, finished, failed, cached, cost_nano)
