"""Whatever becomes of answers and of room: each call ends once, and none is run and refused.

A session of the client against the real queue, through a way that loses answers before and after
the step, loses replies, and brings bytes that nobody can read.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import TypeVar

import msgspec
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aios_broker.client.pending import FINAL, Pending
from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Limits, Session
from aios_broker.client.transport import Attached, CallStatus, Outcome
from aios_broker.contract.errors import KernelError, KeyConflict, RedisUnavailable
from aios_broker.contract.ids import Ids
from aios_broker.contract.job import decode_job
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import EchoResult, Heard, Reply, encode
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import Ending
from aios_broker.redis.connection import Connection
from tests.conftest import RunningRedis
from tests.session_user import sent
from tests.waiting import wait_until_async

Answer = TypeVar("Answer")

LIMITS = Limits(recheck_s=0.05, patience_s=20.0, cancel_s=2.0)
AGENTS = ("ada", "bob")
ROOM = 5
QUOTA = 2  # of bob


class Way:
    """The way to the kernel; what is in `faults` befalls the next steps and messages."""

    def __init__(self, inner: RedisTransport) -> None:
        self.inner = inner
        self.cuts: list[str] = []  # of the next submits: "before" or "after" the step
        self.unread = 0  # so many of the next messages come as other bytes
        self.lost = 0  # ... or not at all
        self.refused: list[str] = []

    @property
    def result_ttl_s(self) -> float:
        return self.inner.result_ttl_s

    async def open(self) -> None:
        await self.inner.open()

    async def submit(self, syscalls: Sequence[Syscall]) -> list[Outcome]:
        cut = self.cuts.pop() if self.cuts else ""
        if cut == "before":
            raise RedisUnavailable("cut before the step")
        answer = await self.inner.submit(syscalls)
        if cut == "after":
            raise RedisUnavailable("cut after the step")
        return answer

    def ids(self, owner: Owner) -> Ids:
        return self.inner.ids(owner)

    async def cancel(
        self, ids: Sequence[str], module: Module, error: KernelError, owner: Owner | None
    ) -> list[bool]:
        return await self.inner.cancel(ids, module, error, owner)

    async def attach(
        self,
        syscall_id: str,
        module: Module | None,
        owner: Owner | None,
        heard: Heard | None = None,
    ) -> Attached:
        return await self.inner.attach(syscall_id, module, owner, heard)

    async def status(self, syscall_id: str, owner: Owner | None) -> CallStatus | None:
        return await self.inner.status(syscall_id, owner)

    async def messages(self) -> list[bytes]:
        return [each for data in await self.inner.messages() for each in self._passed(data)]

    def _passed(self, data: bytes) -> list[bytes]:
        if self.unread:
            self.unread -= 1
            return [b"\xff" + data[: len(data) // 2]]
        if self.lost:
            self.lost -= 1
            return []
        return [data]

    async def aclose(self) -> None:
        await self.inner.aclose()


class ClientMachine(RuleBasedStateMachine):
    """One client; the worker is this machine: it runs what it claims when a rule says so."""

    server: RunningRedis

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.calls: list[Pending] = []
        self.conflicts: list[Pending] = []
        self.ends: Counter[int] = Counter()  # of each call, by its place
        self.ran: Counter[str] = Counter()
        self.forgotten: set[str] = set()  # had ended when Redis lost all: nobody knows their ids

    def do(self, work: Coroutine[object, object, Answer]) -> Answer:
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        self.do(self._begin())

    async def _begin(self) -> None:
        url = self.server.url
        with redis.Redis.from_url(url) as client:
            client.flushall()
            client.hset("rq:aios:policy:tool", "max_waiting", ROOM)
        self.connection = Connection(url)
        self.queue = ModuleQueue(Functions(self.connection), "tool")
        quotas = Quotas(self.queue.functions)
        await quotas.set("tool", QuotaRow(Subject.of_agent("bob"), max_queued=QUOTA))
        self.way = Way(RedisTransport(url, "client"))
        self.session = Session(self.way, LIMITS)
        await self.session.open()

    def _follow(self, pending: Pending) -> None:
        place = len(self.calls)
        self.calls.append(pending)
        pending.when_ended(lambda: self.ends.update([place]))

    @rule(
        agents=st.lists(st.sampled_from(AGENTS), min_size=1, max_size=8),
        cuts=st.lists(st.sampled_from(("before", "after")), max_size=2),
    )
    def submit(self, agents: list[str], cuts: list[str]) -> None:
        async def batch() -> None:
            self.way.cuts = list(cuts)
            for agent in agents:
                self._follow(sent(self.session, Syscall(new_id(), agent, ToolEcho("x"))))
            await self._settle()

        self.do(batch())

    async def _settle(self) -> None:
        """Until each is accepted, or refused."""
        await wait_until_async(lambda: not any(call.is_on_its_way for call in self.calls))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), same=st.booleans())
    def use_an_id_again(self, data: st.DataObject, *, same: bool) -> None:
        first = data.draw(st.sampled_from(self.calls)).syscall
        assert first is not None
        body = first.body if same else ToolEcho("another")

        async def again() -> None:
            taken = {call.id for call in self.calls if call.state in ("accepted", "ended")}
            if first.id in self.forgotten or (first.id not in taken and not same):
                return
            pending = self.session.submit(msgspec.structs.replace(first, body=body, deadline_s=9.0))
            if same:
                if not any(pending is call for call in self.calls):
                    self._follow(pending)
                await self._settle()
                return
            await asyncio.wait_for(pending.ended, timeout=10)
            self.conflicts.append(pending)

        self.do(again())

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.do(self.session.cancel(data.draw(st.sampled_from(self.calls))))

    @rule(count=st.integers(1, 4), unread=st.integers(0, 2), lost=st.integers(0, 2))
    def work(self, count: int, unread: int, lost: int) -> None:
        self.way.unread, self.way.lost = unread, lost
        self.do(self._work(count))

    async def _work(self, count: int) -> None:
        nothing = ClaimRequest(0, 30.0)
        leases = await self.queue.claim("worker", ClaimRequest(count, 30.0))
        self.ran.update(lease.job_id for lease in leases)
        endings = []
        for lease in leases:
            body = decode_job(lease.data, lease.job_id).body
            assert body == ToolEcho("x")  # of what was refused for its key nothing runs
            reply = encode(Reply(lease.job_id, EchoResult("x")))
            endings.append(Ending(lease, "finished", reply, 0.0))
        if endings:
            await self.queue.finish("worker", endings, nothing)
        done = {lease.job_id for lease in leases}
        await wait_until_async(  # a lost reply, and one that cannot be read, is found by id
            lambda: all(call.state in FINAL for call in self.calls if call.id in done)
        )

    @rule()
    def forget(self) -> None:
        """Redis loses all; what had been accepted is submitted again."""

        async def flush() -> None:
            with redis.Redis.from_url(self.server.url) as client:
                kept = [call for call in self.calls if call.state == "accepted"]
                before = {call.id: call.submissions for call in kept}
                self.forgotten.update(call.id for call in self.calls if call.state in FINAL)
                client.flushall()
                client.hset("rq:aios:policy:tool", "max_waiting", ROOM)
                await wait_until_async(
                    lambda: all(c.state in FINAL or c.submissions == before[c.id] + 1 for c in kept)
                )
                await self._settle()
                waiting = client.lrange("rq:queue:tool", 0, -1)
            known = [call.id.encode() for call in kept if call.state == "accepted"]
            assert sorted(waiting) == sorted(known)

        self.do(flush())

    @invariant()
    def none_is_run_and_refused(self) -> None:
        accepted = {call.id for call in self.calls if call.state in ("accepted", "ended")}
        with redis.Redis.from_url(self.server.url, decode_responses=True) as client:
            waiting = set(client.lrange("rq:queue:tool", 0, -1))
        refused = {call.id for call in self.calls if call.state == "refused"} - accepted
        assert not refused & waiting
        assert not refused & set(self.ran)

    @invariant()
    def each_ends_once(self) -> None:
        for place, call in enumerate(self.calls):
            assert self.ends[place] == (call.state in FINAL)
        assert all(count == 1 for count in self.ran.values())

    @invariant()
    def another_body_is_a_conflict(self) -> None:
        for pending in self.conflicts:
            assert pending.reply is not None
            assert pending.reply.error is not None
            assert pending.reply.error.code == KeyConflict.code

    def teardown(self) -> None:
        async def leave() -> None:
            await self.session.aclose()
            await self.connection.aclose()
            assert all(call.state in FINAL for call in self.calls)

        try:
            if hasattr(self, "session"):
                self.do(leave())
        finally:
            self.runner.close()


def test_no_call_is_run_and_refused(redis_server: RunningRedis) -> None:
    machine = type("Machine", (ClientMachine,), {"server": redis_server})
    run = settings(
        max_examples=25,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    run_state_machine_as_test(machine, settings=run)
