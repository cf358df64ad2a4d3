"""The limits of an account hold over all workers, in every minute; claims go by them."""

import asyncio
import sys
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from aios_broker.contract.cores import CoreCard, RateLimits
from aios_broker.contract.syscall import Need, new_id
from aios_broker.queues.admission import Admission, RateLimited
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.rate_limits import CoreRates, Rates, Terms
from aios_broker.queues.records import JobMetadata, Submission, WorkerCard
from tests.examples import AT_MUTANTS, PHASES, SAME_EACH_TIME
from tests.queue_user import QueueUser, submitted
from tests.rates_machine import RatesMachine

ASKING = """
import asyncio, sys
from aios_broker.contract.cores import RateLimits
from aios_broker.queues.functions import Functions
from aios_broker.queues.rate_limits import CoreRates
from aios_broker.redis.connection import Connection

async def ask(url, times):
    connection = Connection(url)
    rates = CoreRates(Functions(connection), "hosted", lambda: RateLimits(100, 5000))
    permits = [await rates.acquire(30) for _ in range(times)]
    print(sum(permit.wait_s == 0 for permit in permits))
    await connection.aclose()

asyncio.run(ask(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.timeout(240)
def test_no_minute_has_more_than_the_limit(redis_url: str) -> None:
    RatesMachine.url = redis_url
    run_state_machine_as_test(
        RatesMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=SAME_EACH_TIME,
            database=None,
            phases=PHASES,
            report_multiple_bugs=not AT_MUTANTS,
            suppress_health_check=list(HealthCheck),
        ),
    )


async def test_processes_that_ask_at_once_share_the_limit(redis_url: str) -> None:
    asking = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", ASKING, redis_url, "60", stdout=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    answers = [await each.communicate() for each in asking]
    assert sum(int(stdout) for stdout, _ in answers) == 100


async def register(user: QueueUser, *cards: CoreCard) -> None:
    worker = WorkerCard("worker", "llm", pid=1, hostname="here", slots=9, cores=cards)
    await user.queue.register(worker)


async def publish(user: QueueUser, cores: Sequence[str]) -> list[str]:
    jobs = [
        Submission(new_id(), b"[]", JobMetadata("ada", "llm.chat"), "", needs=(Need("core", core),))
        for core in cores
    ]
    await submitted(user.queue, jobs)
    return [job.job_id for job in jobs]


HOSTED = CoreCard(name="hosted", model="m", limits=RateLimits(2, 1000))
LOCAL = CoreCard(name="local", model="n")


async def test_a_claim_takes_no_more_than_may_be_sent_and_others_run(user: QueueUser) -> None:
    await register(user, HOSTED, LOCAL)
    ids = await publish(user, ["hosted", "hosted", "hosted", "local"])
    leases = await user.queue.claim("worker", ClaimRequest(4, 30.0, ("hosted", "local")))
    assert [lease.job_id for lease in leases] == [ids[0], ids[1], ids[3]]
    barrier = await Admission(user.functions).barrier("llm", ids[2])
    assert isinstance(barrier, RateLimited)
    assert (barrier.core, barrier.what, barrier.used, barrier.most) == ("hosted", "requests", 2, 2)
    assert 50.0 < barrier.opens_in_s <= 61.0
    rates = CoreRates(user.functions, "hosted", lambda: HOSTED.limits)
    for _ in leases[:2]:  # they have their places
        assert (await rates.acquire(10)).wait_s == 0
    assert (await rates.acquire(10)).wait_s > 50.0


async def test_a_claim_expects_of_each_what_others_took(user: QueueUser) -> None:
    card = CoreCard(name="hosted", model="m", limits=RateLimits(100, 1000))
    await register(user, card)
    rates = CoreRates(user.functions, "hosted", lambda: card.limits)
    permit = await rates.acquire(900)
    await rates.settle(permit, 400)  # 400 of 1,000 are gone; another one like it fits once
    await publish(user, ["hosted"] * 3)
    assert len(await user.queue.claim("worker", ClaimRequest(3, 30.0, ("hosted",)))) == 1


async def test_a_pause_that_an_endpoint_asks_for_holds_all_workers(user: QueueUser) -> None:
    endpoint = CoreCard(name="hosted", model="m", kind="openai")  # without limits of its own
    await register(user, endpoint)
    await CoreRates(user.functions, "hosted", lambda: endpoint.limits).penalise(20.0)
    await CoreRates(user.functions, "hosted", lambda: endpoint.limits).penalise(
        5.0
    )  # told later, shorter
    [job_id] = await publish(user, ["hosted"])
    assert await user.queue.claim("another", ClaimRequest(1, 30.0, ("hosted",))) == []
    barrier = await Admission(user.functions).barrier("llm", job_id)
    assert isinstance(barrier, RateLimited)
    assert barrier.what == "told"
    assert 10.0 < barrier.opens_in_s <= 20.0


async def test_a_pause_ends_by_itself(user: QueueUser) -> None:
    rates = CoreRates(user.functions, "hosted", lambda: RateLimits())
    await rates.penalise(0.05)
    permit = await asyncio.wait_for(rates.wait(1), timeout=5.0)
    assert permit.wait_s == 0


async def test_cores_that_name_an_account_share_its_limits(user: QueueUser) -> None:
    limits = RateLimits(1, 0, account="key-1")
    small = CoreRates(user.functions, "small", lambda: limits)
    large = CoreRates(user.functions, "large", lambda: limits)
    assert (await small.acquire(10_000)).wait_s == 0  # any number of tokens
    assert (await large.acquire(1)).wait_s > 0


async def test_limits_that_change_hold_from_then_on(user: QueueUser) -> None:
    """For who sends, and for claims; what was counted before counts where it was."""
    limits = [RateLimits(2)]
    rates = CoreRates(user.functions, "hosted", lambda: limits[0])
    first = await rates.acquire(10)
    await rates.acquire(10)
    assert (await rates.acquire(10)).wait_s > 50.0
    limits[0] = RateLimits(3)
    assert (await rates.acquire(10)).wait_s == 0
    limits[0] = RateLimits(0, 100, account="another")
    await rates.settle(first, 90)
    assert (await rates.acquire(100)).wait_s == 0  # nothing of the other one is counted here
    limits[0] = RateLimits(0, 121)
    assert (await rates.acquire(11)).wait_s == 0
    assert (await rates.acquire(1)).wait_s > 50.0


async def test_what_a_core_has_not_any_more_is_not_told(user: QueueUser) -> None:
    rates = Rates(user.functions)
    await register(user, CoreCard(name="hosted", model="m", limits=RateLimits(2), currency="EUR"))
    assert await rates.terms() == [Terms("hosted", "hosted", 2, 0, "EUR")]
    await register(user, LOCAL, CoreCard(name="hosted", model="m"))
    assert await rates.terms() == []


async def test_a_request_larger_than_the_limit_goes_alone(user: QueueUser) -> None:
    rates = CoreRates(user.functions, "hosted", lambda: RateLimits(0, 100))
    permit = await rates.acquire(5_000)
    assert (permit.wait_s, permit.tokens) == (0, 100)
    assert (await rates.acquire(1)).wait_s > 50.0
    await rates.settle(permit, 40)
    assert (await rates.acquire(60)).wait_s == 0
