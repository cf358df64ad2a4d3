"""What must hold of the queues after every step of the model, and the tools to take steps with."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import msgspec
import redis
from hypothesis.stateful import RuleBasedStateMachine, invariant

from aios_broker.contract import transitions
from aios_broker.contract.syscall import State
from aios_broker.ledger.fold import SyscallRow, fold
from aios_broker.ledger.journal import parse_entry
from aios_broker.ledger.ledger import read_usage
from aios_broker.queues.admission import Admission, Resource
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.order import Order
from aios_broker.queues.quota import Quotas, Subject
from aios_broker.queues.records import Lease, PolicyRow
from aios_broker.redis.connection import Connection
from tests.queue_model import (
    COUNTS,
    LOCK,
    TOOL,
    Accounts,
    Known,
    Premises,
    needs_of,
    owners,
    resources_of,
)

T = TypeVar("T")
CLIENTS = ("alice", "bob")
MAX_LOSSES = 2  # so that random steps reach it


class QueueChecks(RuleBasedStateMachine):
    """A Redis, the model beside it, and how the two are compared."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = redis.Redis.from_url(self.url)
        self.raw.flushall()
        self.loop = asyncio.new_event_loop()
        self.connection = Connection(self.url)
        functions = Functions(self.connection)
        self.queue = ModuleQueue(functions, "llm")
        self.order = Order(functions, "llm")
        self.control = Control(functions)
        self.quotas = Quotas(functions)
        self.admission = Admission(functions)
        self.known: dict[str, Known] = {}
        self.line: list[str] = []  # the run queue, head first
        self.leases: list[Lease] = []  # all that were ever given
        self.heard: Counter[tuple[str, str]] = Counter()  # (id, client) -> replies expected
        self.accounts = Accounts()
        self.premises = Premises()
        self.entered: dict[Subject, Counter[str]] = defaultdict(Counter)  # by the journal
        self.read_to = "-"  # of the journal
        self.epoch = self.do(self.order.lead("scheduler", 60.0)).epoch
        self.do(self.control.set_policy("llm", PolicyRow(max_losses=MAX_LOSSES)))

    def do(self, step: Awaitable[T]) -> T:
        return self.loop.run_until_complete(step)

    def teardown(self) -> None:
        self.journal_follows_the_transition_table()
        self.journal_says_what_each_used()
        self.do(self.connection.aclose())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.raw.close()

    def members(self, key: str) -> set[str]:
        return {member.decode() for member in self.raw.zrange(key, 0, -1)}

    def needed_by(self, job_id: str) -> frozenset[Resource]:
        corrected = self.known[job_id].corrected if job_id in self.known else None
        return resources_of(job_id, needs_of(job_id) if corrected is None else corrected)

    def held_by(self, job_id: str) -> frozenset[Resource]:
        """Return what one that runs holds: all that it needs, or nothing."""
        return frozenset() if self.known[job_id].turned_away else self.needed_by(job_id)

    @invariant()
    def redis_agrees_with_the_model(self) -> None:
        own = Keys().own
        running = {f"{i}:{k.attempt}" for i, k in self.known.items() if k.state == "running"}
        alive = {i for i, known in self.known.items() if known.alive}
        assert [i.decode() for i in self.raw.lrange(Keys().queue("llm"), 0, -1)] == self.line
        assert self.members(own("leases:llm")) == running
        assert self.members(Keys().registry("wip", "llm")) == running
        held = {i for i, known in self.known.items() if known.state == "held"}
        assert self.members(own("held:llm")) == held
        parked = {i for i, known in self.known.items() if known.state == "parked"}
        assert self.members(own("parked:llm")) == parked
        assert self.members(Keys().registry("deferred", "llm")) == held | parked
        assert {i.decode() for i in self.raw.hkeys(own("live:llm"))} == alive
        assert self.members(own("deadlines:llm")) == alive
        assert self.members(own("scores:llm")) <= alive

    @invariant()
    def who_runs_holds_what_it_needs_and_nobody_else_holds_anything(self) -> None:
        running = [i for i, known in self.known.items() if known.state == "running"]
        expected = Counter(
            (str(r), i)
            for i in running
            for r in self.held_by(i)
            if r in (TOOL, LOCK) or self.premises.limit(r) is not None
        )
        rows = self.do(self.admission.resources("llm"))
        held = Counter((str(row.resource), job_id) for row in rows for job_id in row.holders)
        assert held == expected

    @invariant()
    def each_client_heard_each_reply_once(self) -> None:
        heard: Counter[tuple[str, str]] = Counter()
        for client in CLIENTS:
            for message in self.raw.lrange(Keys().reply(client), 0, -1):
                heard[msgspec.json.decode(message)["id"], client] += 1
        assert heard == +self.heard

    @invariant()
    def snapshots_are_accounted_for(self) -> None:
        own = Keys().own
        sizes = {i.decode(): int(n) for i, n in self.raw.hgetall(own("snapshot_bytes")).items()}
        assert {i for i in self.known if self.raw.exists(Keys().snapshot(i))} == set(sizes)
        assert all(self.known[i].alive for i in sizes)
        assert int(self.raw.get(own("snapshot_total")) or 0) == sum(sizes.values())
        assert self.members(own("snapshots")) == set(sizes)

    @invariant()
    def charged_equals_used(self) -> None:
        """By every counter, and by the journal, from which the ledger adds up the same."""
        expected = {who: +use for who, use in self.accounts.charged.items() if +use}
        usage = self.do(self.quotas.usage("llm")).by_subject
        assert {
            who: +Counter(
                tokens=use.tokens,
                prompt_tokens=use.prompt_tokens,
                finished=use.finished,
                ran_ms=round(use.ran_s * 1000),
                failed=use.failed,
                cached_tokens=use.cached_tokens,
                cost_nano=sum(use.cost_nano.values()),
            )
            for who, use in usage.items()
        } == expected
        for entry in self.raw.xrange(Keys().journal, self.read_to, "+"):
            self.read_to = f"({entry[0].decode()}"
            fields = [part for pair in entry[1].items() for part in pair]
            for row in read_usage([entry[0], fields]):
                counts = {name: getattr(row, name) for name in COUNTS}
                for who in (
                    Subject.of_tenant(row.tenant),
                    Subject.of_agent(row.agent, row.tenant),
                    Subject.of_program(row.program, row.agent, row.tenant),
                ):
                    self.entered[who].update(counts)
        assert {who: +use for who, use in self.entered.items() if +use} == expected
        for job_id, known in self.known.items():
            names = ("aios_tokens", "aios_ran_ms", "aios_prompt_tokens", "aios_cached")
            told = [int(text or 0) for text in self.raw.hmget(Keys().job(job_id), names)]
            total = known.used.total
            expected_told = ("tokens", "ran_ms", "prompt_tokens", "cached_tokens")
            assert told == [total[name] for name in expected_told]

    @invariant()
    def the_load_is_what_waits_and_runs(self) -> None:
        loads = {
            field.decode(): int(n) for field, n in self.raw.hgetall(Keys().own("load:llm")).items()
        }
        expected: Counter[str] = Counter()
        for job_id, known in self.known.items() if self.accounts.quotas else ():
            if known.alive:
                place = "r" if known.state == "running" else "q"
                tenant, agent, _ = owners(job_id)
                expected.update((place, f"{place} {tenant}", f"{place} {agent}"))
        loads.pop("counted", None)
        assert +Counter(loads) == expected

    def journal_follows_the_transition_table(self) -> None:
        states: dict[str, State | None] = {}
        for _, entry in self.raw.xrange(Keys().journal):
            for line in entry[b"t"].decode().split("\n") if b"t" in entry else ():
                name, job_id, *_ = line.split("\t")
                event = cast("transitions.Event", name)
                states[job_id] = transitions.after(states.get(job_id), event)
        names = {"queued": "waiting", "suspended": "waiting"}
        for job_id, known in self.known.items():
            state = states[job_id]
            assert state is not None
            assert names.get(state, state) == known.state

    def journal_says_what_each_used(self) -> None:
        rows: dict[str, SyscallRow] = {}
        for stream_id, entry in self.raw.xrange(Keys().journal):
            parsed = parse_entry([stream_id, [p for pair in entry.items() for p in pair]])
            if parsed is not None:
                fold(rows, parsed)
        for job_id, known in self.known.items():
            row, total = rows[job_id], known.used.total
            if known.state != "running":  # its slices are told when it stops
                assert (row.tokens, row.ran_ms, row.cost_nano) == (
                    total["tokens"],
                    total["ran_ms"],
                    total["cost_nano"],
                )
