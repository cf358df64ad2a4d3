"""What the model of the queues knows: of each syscall, and of what was used and may be used."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aios_broker.contract.syscall import Need
from aios_broker.queues.admission import Resource
from aios_broker.queues.quota import QuotaRow, Subject
from aios_broker.queues.records import Charge

COUNTS = (
    "tokens",
    "prompt_tokens",
    "ran_ms",
    "finished",
    "failed",
    "cached_tokens",
    "cost_nano",
)
# Pico-units for a token, by core; each attempt of a syscall runs on another one.
PRICES = {"dear": 150_001, "free": 0, "cheap": 333}
STRANGER = (Subject.of_tenant("default"), Subject.of_agent("?"), Subject.of_program("main", "?"))
ANY_AGENT, ANY_TENANT = Subject.of_agent("*"), Subject.of_tenant("*")


@dataclass
class Used:
    """What a syscall has used, by attempt: the most that was told of each."""

    tokens: dict[int, int] = field(default_factory=dict)
    ran_ms: dict[int, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    pico: dict[int, int] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)

    def tell(
        self, attempt: int, tokens: int, ran_ms: int, prompt_tokens: int, charge: Charge
    ) -> Counter[str]:
        """Take in the totals of an attempt; return what is new."""
        before = self.total
        self.pico[attempt] = max(self.pico.get(attempt, 0), charge.cost_pico)
        self.cached_tokens[attempt] = max(self.cached_tokens.get(attempt, 0), charge.cached_tokens)
        self.tokens[attempt] = max(self.tokens.get(attempt, 0), tokens)
        self.ran_ms[attempt] = max(self.ran_ms.get(attempt, 0), ran_ms)
        self.prompt_tokens = max(self.prompt_tokens, prompt_tokens)
        return self.total - before

    @property
    def total(self) -> Counter[str]:
        return Counter(
            tokens=sum(self.tokens.values()),
            ran_ms=sum(self.ran_ms.values()),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=sum(self.cached_tokens.values()),
            cost_nano=-(-sum(self.pico.values()) // 1000),  # rounded once, over all attempts
        )


def charge_of(attempt: int, tokens: int, cached_tokens: int) -> Charge:
    """Return what an attempt has cost on its core."""
    core = sorted(PRICES)[attempt % len(PRICES)]
    currency = "USD" if PRICES[core] else ""
    return Charge(core, PRICES[core] * tokens, currency, cached_tokens)


@dataclass
class Known:
    """What the model knows of one syscall."""

    state: str = "waiting"  # waiting | running | held | parked | finished | failed | cancelled
    attempt: int = 0
    losses: int = 0
    clients: set[str] = field(default_factory=set)
    told_to_hold: bool = False
    told_to_suspend: bool = False
    decided: bool = False  # it was unparked in this life
    # Its worker said that it needs other things than its caller did.
    corrected: tuple[Need, ...] | None = None
    turned_away: bool = False  # it runs, and was told that what it needs is not free
    used: Used = field(default_factory=Used)

    @property
    def alive(self) -> bool:
        return self.state in ("waiting", "running", "held", "parked")


def owners(job_id: str) -> tuple[Subject, Subject, Subject]:
    """Return whose a syscall is: two agents share a tenant, each syscall is its own program."""
    agent = "ada" if int(job_id, 16) % 2 else "bob"
    program = f"p{int(job_id, 16)}"
    return (
        Subject.of_tenant("default"),
        Subject.of_agent(agent),
        Subject.of_program(program, agent),
    )


TOOL, LOCK = Resource.tool("t"), Resource.lock("w")
OF_TENANT = Resource.tool("t", tenant="default")
OF_AGENT = {name: Resource.tool("t", tenant="default", agent=name) for name in ("ada", "bob")}
NEEDS = (
    (Need("tool", "t"), Need("lock", "w")),
    (Need("lock", "w"),),
    (Need("tool", "t"),),
    (),
)


def needs_of(job_id: str) -> tuple[Need, ...]:
    """Return what a syscall needs: all that two others need, or nothing."""
    return NEEDS[int(job_id, 16) % len(NEEDS)]


def resources_of(job_id: str, needs: tuple[Need, ...]) -> frozenset[Resource]:
    """Return the resources that a syscall holds while it runs."""
    own = OF_AGENT[owners(job_id)[1].agent]
    by_kind = {"tool": {TOOL, OF_TENANT, own}, "lock": {LOCK}}
    return frozenset().union(*(by_kind[need.kind] for need in needs))


@dataclass
class Premises:
    """What decides who may run beside quotas: limits, programs that are barred, debts."""

    tool_limit: int | None = None  # an operator's
    card: tuple[int, int, int] = (0, 0, 0)  # of the tool, a tenant, an agent; 0: any number
    barred: frozenset[Subject] = frozenset()
    # Resource -> the syscall that gets the next place, and the time in its record since it waits.
    owed: dict[Resource, tuple[str, int]] = field(default_factory=dict)

    def limit(self, resource: Resource) -> int | None:
        if resource == LOCK:
            return 1
        if resource != TOOL:
            return self.card[2 if resource.agent else 1] or None
        limits = [self.tool_limit, self.card[0] or None]
        return min((limit for limit in limits if limit is not None), default=None)

    def is_free(self, resource: Resource, holders: int, *, owed: bool) -> bool:
        """Return whether one more may hold it; a debt to another counts as one more holder."""
        limit = self.limit(resource)
        return limit is None or holders + owed < limit


@dataclass
class Accounts:
    """What all have used, and the quotas. Time stands still: a minute passes when it is told to."""

    quotas: dict[Subject, QuotaRow] = field(default_factory=dict)
    charged: dict[Subject, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    levels: dict[tuple[str, Subject], float] = field(default_factory=dict)

    def charge(self, subjects: Iterable[Subject], use: Mapping[str, int]) -> None:
        for subject in subjects:
            self.charged[subject].update(use)
            if subject.scope == "program":
                continue
            tokens = use.get("tokens", 0) + use.get("prompt_tokens", 0)
            self._drain("tokens", subject, self.limit(subject, "tokens_per_minute"), tokens)
            slot_s = self.limit(subject, "slot_seconds_per_minute")
            self._drain(
                "ms", subject, None if slot_s is None else slot_s * 1000, use.get("ran_ms", 0)
            )

    def _drain(self, kind: str, subject: Subject, limit: float | None, used: int) -> None:
        if limit is not None and used:
            key = (kind, subject)
            self.levels[key] = min(limit, self.levels.get(key, limit)) - used

    def limit(self, subject: Subject, name: str) -> float | None:
        anybody = ANY_AGENT if subject.scope == "agent" else ANY_TENANT
        for row in (self.quotas.get(subject), self.quotas.get(anybody)):
            value = getattr(row, name, None)
            if value is not None:
                return float(value)
        return None

    def unset(self, subject: Subject) -> None:
        self.quotas.pop(subject, None)
        for kind in ("tokens", "ms"):
            self.levels.pop((kind, subject), None)
        if not self.quotas:
            self.levels.clear()

    def admits(self, subject: Subject, runs: int) -> bool:
        """Return whether one more of this agent or tenant may run."""
        most = self.limit(subject, "max_running")
        return (most is None or runs < most) and not self.is_over(subject)

    def is_over(self, subject: Subject) -> bool:
        """Return whether this agent or tenant has used up its minute."""
        for kind, name in (("tokens", "tokens_per_minute"), ("ms", "slot_seconds_per_minute")):
            limit = self.limit(subject, name)
            if limit is not None and min(limit, self.levels.get((kind, subject), limit)) <= 0:
                return True
        return False
