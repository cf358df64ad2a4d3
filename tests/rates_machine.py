"""A model of an account's limits: random requests and claims on a real Redis, and a list beside it.

The clock is Redis' own. To let time pass, what is kept of the account is moved back by as much.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios_broker.contract.cores import CoreCard, RateLimits, queue_of
from aios_broker.contract.syscall import Need, new_id
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.rate_limits import CoreRates, Permit
from aios_broker.queues.records import JobMetadata, Submission, WorkerCard
from aios_broker.redis.connection import Connection
from tests.queue_user import submitted

T = TypeVar("T")
CORE = "hosted"
LIMITS = RateLimits(requests_per_minute=5, tokens_per_minute=100)
WINDOW_S = 60.0


@dataclass
class Sent:
    """A request that was let go: when, by a clock that goes on as the test lets it; its tokens."""

    at_s: float
    tokens: int  # that count: as estimated, then as used
    permit: Permit
    shifted_s: int  # how far time had been moved then


class RatesMachine(RuleBasedStateMachine):
    """Two workers of one account, each with a connection of its own."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = redis.Redis.from_url(self.url)
        self.raw.flushall()
        self.loop = asyncio.new_event_loop()
        self.connections = [Connection(self.url), Connection(self.url)]
        self.workers = [
            CoreRates(Functions(each), CORE, lambda: LIMITS) for each in self.connections
        ]
        self.queues = [ModuleQueue(Functions(each), "llm") for each in self.connections]
        card = CoreCard(name=CORE, model=CORE, limits=LIMITS)
        self.do(self.queues[0].register(WorkerCard("w", "llm", 1, "here", 9, (card,))))
        self.sent: list[Sent] = []
        self.shifted_s = 0
        self.paused_until_s = 0.0

    def do(self, step: Awaitable[T]) -> T:
        return self.loop.run_until_complete(step)

    def teardown(self) -> None:
        for connection in self.connections:
            self.do(connection.aclose())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.raw.close()

    def now_s(self) -> float:
        seconds, micros = self.raw.time()
        return float(seconds + micros / 1_000_000 + self.shifted_s)

    def key(self) -> str:
        return Keys().own(f"rate:{CORE}")

    def kept(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self.raw.hgetall(self.key())
        return found

    def counted(self, kind: bytes, kept: dict[bytes, bytes]) -> int:
        """Return what counts now: requests (r), or places that claims have taken (c)."""
        oldest = int(self.raw.time()[0]) - WINDOW_S
        return sum(
            int(value)
            for name, value in kept.items()
            if name.startswith(kind) and name != b"until" and int(name[1:]) >= oldest
        )

    def places_before(self) -> Callable[[], set[int]]:
        """Return how many there were, by the clock of now and by that of later."""
        kept = self.kept()
        first = self.counted(b"c", kept)
        return lambda: {first, self.counted(b"c", kept)}

    @rule(worker=st.sampled_from([0, 1]), tokens=st.sampled_from([0, 10, 40, 100, 150]))
    def ask(self, worker: int, tokens: int) -> None:
        places = self.places_before()
        permit = self.do(self.workers[worker].acquire(tokens))
        after = self.counted(b"c", self.kept())
        if permit.wait_s == 0:
            assert permit.tokens == min(tokens, LIMITS.tokens_per_minute)
            self.sent.append(Sent(self.now_s(), permit.tokens, permit, self.shifted_s))
            assert after in {max(0, before - 1) for before in places()}
        else:
            assert permit.wait_s < WINDOW_S + 1.001
            assert after in places()

    @rule(worker=st.sampled_from([0, 1]), tokens=st.sampled_from([10, 100]))
    def ask_again_when_told(self, worker: int, tokens: int) -> None:
        """Whoever waits as long as it was told, and nobody comes before, is let go."""
        permit = self.do(self.workers[worker].acquire(tokens))
        for _ in range(3):  # requests, tokens and a pause may be over at different times
            if permit.wait_s == 0:
                break
            self.time_passes(int(permit.wait_s) + 1)
            permit = self.do(self.workers[worker].acquire(tokens))
        assert permit.wait_s == 0
        self.sent.append(Sent(self.now_s(), permit.tokens, permit, self.shifted_s))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), tokens=st.sampled_from([0, 5, 20]))
    def settle(self, data: st.DataObject, tokens: int) -> None:
        """Once for each; tokens that were used are never more than was thought, here."""
        sent = data.draw(st.sampled_from(self.sent))
        if tokens > sent.tokens or sent.permit.second == 0:
            return
        moved = self.shifted_s - sent.shifted_s
        permit = Permit(0.0, sent.permit.second - moved, sent.tokens, CORE)
        self.do(self.workers[0].settle(permit, tokens))
        sent.tokens, sent.permit = tokens, Permit(0.0)

    @rule(want=st.integers(1, 4))
    def claim(self, want: int) -> None:
        """No more is lent than may be sent; each that is lent has a place."""
        jobs = [
            Submission(
                new_id(), b"[]", JobMetadata("a", "llm.chat"), "", needs=(Need("core", CORE),)
            )
            for _ in range(want)
        ]
        self.do(submitted(self.queues[0], jobs))
        kept, places = self.kept(), self.places_before()
        request = ClaimRequest(want, 60.0, (CORE,))
        leases = self.do(self.queues[1].claim("w", request))
        after = self.counted(b"c", self.kept())
        room = LIMITS.requests_per_minute - self.counted(b"r", kept) - self.counted(b"c", kept)
        assert len(leases) <= max(0, room)
        assert after in {before + len(leases) for before in places()}
        self.raw.delete(Keys().queue(queue_of("llm", CORE)))

    @rule(for_s=st.sampled_from([1, 30]))
    def the_endpoint_asks_for_a_pause(self, for_s: int) -> None:
        self.do(self.workers[0].penalise(for_s))
        self.paused_until_s = max(self.paused_until_s, self.now_s() + for_s - 0.01)
        permit = self.do(self.workers[1].acquire(0))  # the other worker hears of it, too
        assert self.now_s() >= self.paused_until_s or permit.wait_s > 0
        assert permit.wait_s > 0 or for_s == 1

    @rule(by_s=st.sampled_from([1, 20, 59, 61]))
    def time_passes(self, by_s: int) -> None:
        self.shifted_s += by_s
        fields = self.raw.hgetall(self.key())
        moved = {}
        for name, value in fields.items():
            if name == b"until":
                moved[name] = int(value) - 1000 * by_s
            else:
                moved[name[:1] + str(int(name[1:]) - by_s).encode()] = value
        self.raw.delete(self.key())
        if moved:
            self.raw.hset(self.key(), mapping=moved)

    @invariant()
    def no_minute_has_more_than_the_limit(self) -> None:
        for last in self.sent:
            minute = [each for each in self.sent if 0 <= last.at_s - each.at_s < WINDOW_S - 0.05]
            assert len(minute) <= LIMITS.requests_per_minute
            assert sum(each.tokens for each in minute) <= LIMITS.tokens_per_minute

    @invariant()
    def the_account_is_small(self) -> None:
        assert self.raw.hlen(self.key()) <= 3 * 62 + 1
        assert self.raw.ttl(self.key()) != 0
