"""Whatever cores come and go, each syscall stands in one queue and is answered once."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.syscall import known_needs, new_id
from aios_broker.queues.records import JobMetadata, Submission
from tests.examples import AT_MUTANTS, PHASES, SAME_EACH_TIME
from tests.queue_user import DATA, QueueUser, submitted
from tests.routing_machine import RoutingMachine


@pytest.mark.timeout(240)  # 15 s of work, on a machine that has more to do
def test_no_order_of_steps_loses_or_doubles_or_misplaces_a_syscall(redis_url: str) -> None:
    RoutingMachine.url = redis_url
    run_state_machine_as_test(
        RoutingMachine,
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


AGES_S = st.lists(st.integers(0, 9), max_size=12).map(lambda ages: sorted(ages, reverse=True))


def test_what_moves_stands_among_the_others_by_how_long_each_waits(redis_url: str) -> None:
    @given(left=AGES_S, right=AGES_S)
    @settings(max_examples=40, deadline=None, derandomize=SAME_EACH_TIME, database=None)
    def check(left: list[int], right: list[int]) -> None:
        assert runner.run(_merged(user, left, right)) == sorted([*left, *right], reverse=True)

    with asyncio.Runner() as runner:
        user = runner.run(_open(redis_url))
        check()
        runner.run(user.redis.aclose())


async def _open(url: str) -> QueueUser:
    return QueueUser(url)


async def _merged(user: QueueUser, left: list[int], right: list[int]) -> list[int]:
    """Let jobs of these ages wait for two cores, of which one dies; return those of the other."""
    await user.redis.execute("FLUSHALL")
    ages: dict[bytes, int] = {}
    for core, waiting in (("left", left), ("right", right)):
        await user.serve(CoreCard(name=core, model=core, aliases=("either",)))
        name = "either" if core == "left" else core
        for age_s in waiting:
            needs = known_needs(f"core:{name}")
            job = Submission(new_id(), DATA, JobMetadata("ada", "llm.chat"), "me", needs)
            await submitted(user.queue, [job])
            ready = await user.redis.execute(
                "HINCRBY", user.keys.job(job.job_id), "aios_ready_ms", -1000 * (age_s + 1)
            )
            assert ready > 0
            ages[job.job_id.encode()] = age_s
    await user.redis.execute("HSET", user.keys.own("core_workers"), "left left", "1 2")
    assert await user.order.move(await user.lead()) == (len(left), 0)
    return [
        ages[each]
        for each in await user.redis.execute("LRANGE", user.keys.queue("llm.right"), 0, -1)
    ]
