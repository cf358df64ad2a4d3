"""Policies that go by what programs and tenants have used, through the whole of the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from aios_broker.contract.cores import CoreCard
from aios_broker.queues.functions import Functions
from aios_broker.queues.order import Order
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import (
    JobMetadata,
    SliceUse,
    WorkerCard,
)
from aios_broker.queues.watch import Watch
from aios_broker.scheduler import ordering, ranking
from aios_broker.scheduler.ordering import ModuleOrder, _List
from aios_broker.scheduler.policy import Core, Needs, Preempt, Ranks, View, policy_named
from aios_broker.scheduler.ranking import LeadershipLost
from tests.policies import SKETCHES, named
from tests.policy_scene import NOTHING_MORE, NOW_MS, Heard, Scene
from tests.queue_user import QueueUser, queue_user

ADA, BOB = JobMetadata("ada", "llm.chat"), JobMetadata("bob", "llm.chat")
ACME = JobMetadata("eve", "llm.chat", tenant="acme")
LONG_ENOUGH_S = 0.3  # for a decision that does not wait
SMALL, LARGE = (CoreCard(name=name, model=name) for name in ("small", "large"))
CARD = WorkerCard("host.1.llm", "llm", 1, "host", slots=3, cores=(SMALL, LARGE))


@pytest.fixture(autouse=True)
def policies_are_read_at_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "POLICY_EVERY_S", 0.0)


@pytest.fixture
async def plas(redis_url: str) -> AsyncIterator[Scene]:
    async with queue_user(redis_url) as user:
        scene = Scene(user, "plas")
        await scene.begin()
        yield scene


@pytest.fixture
async def vtc(redis_url: str) -> AsyncIterator[Scene]:
    async with queue_user(redis_url) as user:
        scene = Scene(user, "vtc")
        await scene.begin()
        yield scene


async def test_a_program_that_was_served_stands_behind_one_that_was_not(plas: Scene) -> None:
    first, *rest = await plas.submit(ADA, 3)
    others = await plas.submit(BOB, 2)
    await plas.settle()
    assert await plas.user.waiting() == [first, *rest, *others]

    assert await plas.serve() == first
    await plas.tick()
    assert await plas.user.waiting() == [*others, *rest]
    assert await plas.user.order.scores([*others, *rest]) == [0.0, 0.0, 1000.0, 1000.0]


async def test_a_syscall_yields_to_a_program_that_has_attained_less(plas: Scene) -> None:
    await plas.submit(ADA)
    [lease] = await plas.user.claim()
    await plas.settle()

    async def verdict(ran_s: float) -> str:
        use = SliceUse(lease, ran_s, 1, None)
        [answer] = await plas.user.queue.slice_end("worker", [use], NOTHING_MORE)
        await plas.settle()
        return answer

    await plas.submit(BOB)
    await plas.settle()
    assert await verdict(0.1) == "go"  # until now it had attained nothing, either
    assert await verdict(0.2) == "suspend"


async def test_tenants_take_turns_and_a_newcomer_is_no_better_off(vtc: Scene) -> None:
    mine = await vtc.submit(ADA, 4)
    theirs = await vtc.submit(ACME, 2)
    served = []
    for _ in range(4):
        await vtc.settle()
        served.append(await vtc.serve())
    assert served == [mine[0], theirs[0], *served[2:]]
    assert set(served[2:]) == {mine[1], theirs[1]}

    # Given that both were served alike, when a third comes, then it begins where they are
    await vtc.settle()
    late = await vtc.submit(JobMetadata("zoe", "llm.chat", tenant="late"), 2)
    await vtc.settle()
    assert await vtc.user.order.scores([mine[2], *late]) == [40.0, 40.0, 40.0]
    assert await vtc.user.waiting() == [*mine[2:], *late]


async def test_what_a_policy_remembers_outlives_its_scheduler(redis_url: str) -> None:
    async with queue_user(redis_url) as user:
        scene = Scene(user, "program_fcfs")
        await scene.begin()
        [early] = await scene.submit(ADA)
        await scene.settle()
        [score] = await user.order.scores([early])
        await scene.serve()
        await scene.begin()
        [late] = await scene.submit(ADA)
        await scene.settle()
        assert await user.order.scores([late]) == [score]

        await scene.begin(SKETCHES["plas"])  # under another policy it is of no use
        await scene.settle()
        assert await user.redis.execute("EXISTS", user.keys.own("marks:llm")) == 0


async def test_only_what_has_moved_is_ranked_anew(plas: Scene) -> None:
    _, waits = await plas.submit(ADA, 2)
    [other] = await plas.submit(BOB)
    await plas.settle()
    scores = plas.user.keys.own("scores:llm")
    await plas.user.redis.execute("ZADD", scores, -1, other, -2, waits)
    [lease] = [each for each in await plas.user.claim(3) if each.job_id not in (waits, other)]
    await plas.finish(lease)
    await plas.user.redis.execute("DEL", plas.user.keys.own("touched:llm"))
    await plas.user.redis.execute(
        "HSET", plas.user.keys.own("touched:llm"), str(Subject.of_program("main", "ada")), 1
    )
    await plas.tick()
    assert await plas.user.order.scores([waits, other]) == [1000.0, -1.0]


async def test_a_tick_ranks_no_more_than_its_share_and_the_head_at_once(
    plas: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "RESCORED", 10)
    monkeypatch.setattr(ranking, "HEAD", 5)
    first, *rest = await plas.submit(ADA, 101)
    await plas.settle()
    assert await plas.serve() == first

    ranked = []
    for _ in range(3):
        await plas.tick()
        scores = await plas.user.order.scores(rest)
        ranked.append(sum(score == 1000.0 for score in scores))
    assert 10 < ranked[0] <= 15  # of the first five hardly all are among the ten
    assert ranked[1] - ranked[0] <= 15
    await plas.settle()
    assert set(await plas.user.order.scores(rest)) == {1000.0}


async def test_one_that_moves_while_its_jobs_are_ranked_is_ranked_again(
    plas: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "RESCORED", 10)
    monkeypatch.setattr(ranking, "HEAD", 1)
    rest = await plas.submit(ADA, 52)
    await plas.settle()
    for _ in range(2):
        rest.remove(await plas.serve())
        await plas.tick()
        await plas.tick()
    await plas.settle()
    assert set(await plas.user.order.scores(rest)) == {2000.0}
    assert await plas.user.redis.execute("EXISTS", plas.user.keys.own("touched:llm")) == 0


async def test_what_a_lost_leader_ranked_counts_for_nothing(plas: Scene) -> None:
    first, second = await plas.submit(ADA, 2)
    await plas.settle()
    assert await plas.serve() == first
    await plas.user.redis.execute("HSET", plas.user.keys.own("scheduler"), "until", 0)
    await plas.user.lead()
    with pytest.raises(LeadershipLost):
        await plas.tick()
    assert await plas.user.order.scores([second]) == [0.0]
    assert await plas.user.redis.execute("EXISTS", plas.user.keys.own("touched:llm")) == 1


async def test_what_is_used_while_a_sweep_ranks_is_not_missed(plas: Scene) -> None:
    """A decision that could see it waits until the sweep's scores, which are older, are there."""
    await plas.submit(ADA)
    [lease] = await plas.user.claim()
    await plas.settle()
    [late] = await plas.submit(ADA)
    redis = Heard(plas.user.url)
    order = Order(Functions(redis), "llm")
    queue = ModuleOrder(order, plas.user.control, SKETCHES["plas"], named)
    deciding: list[asyncio.Task[bool]] = []

    async def use_and_decide() -> None:
        await plas.finish(lease)
        deciding.append(asyncio.create_task(queue.decide(plas.epoch, NOW_MS)))
        await asyncio.wait(deciding, timeout=LONG_ENOUGH_S)

    redis.after["accounts"] = use_and_decide
    assert await queue.sweep(plas.epoch, NOW_MS)
    await deciding[0]
    while await queue.tick(plas.epoch, NOW_MS):
        pass
    assert await plas.user.order.scores([late]) == [1000.0]
    await redis.aclose()


async def test_a_long_queue_lets_those_between_its_ends_go_first(
    plas: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that was served stands at both ends, the other one in the middle."""
    monkeypatch.setattr(ordering, "WHOLE_QUEUE", 20)
    monkeypatch.setattr(ordering, "END", 5)
    monkeypatch.setattr(ordering, "SLACK", 1)
    monkeypatch.setattr(ordering, "WHOLE_EVERY_S", 1e9)  # after the first no sweep helps
    monkeypatch.setattr(plas.queue._lists[0], "whole_due_s", 0.0)
    first, *before = await plas.submit(ADA, 40)
    middle = await plas.submit(BOB, 3)
    behind = await plas.submit(ADA, 40)
    await plas.settle()
    for by_ms, job_id in enumerate(middle):  # those of one score keep the queue's order
        ready = (plas.user.keys.job(job_id), "aios_ready_ms", -by_ms)
        await plas.user.redis.execute("HINCRBY", *ready)
    assert await plas.user.waiting() == [first, *before, *middle, *behind]
    assert await plas.serve() == first
    await plas.settle()
    assert await plas.user.waiting() == [*middle, *before, *behind]


@dataclass(frozen=True, slots=True)
class Witness:
    """Goes by all there is, and remembers what it saw."""

    seen: list[View] = field(default_factory=list)
    name: str = "witness"
    preempt: Preempt = "none"
    reorders: bool = True
    needs: Needs = field(
        default_factory=lambda: Needs(accounts=("program", "tenant"), running=True, cores=True)
    )

    def rank(self, view: View, now_ms: int) -> Ranks:
        self.seen.append(view)
        return Ranks({job.job_id: 7.0 for job in view.jobs})


async def test_a_view_holds_what_its_policy_needs(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "CORES_EVERY_S", 0.0)
    async with queue_user(redis_url) as user:
        scene, witness = Scene(user, "witness"), Witness()
        await scene.begin(witness)
        await scene.submit(ADA, 2)
        await scene.serve()
        await user.queue.register(CARD)
        await user.queue.register(replace(CARD, name="host.2.llm", slots=2, cores=(SMALL,)))
        [running] = await user.claim()
        [waits] = await scene.submit(ACME)
        await scene.settle()

        view = next(view for view in witness.seen if waits in {job.job_id for job in view.jobs})
        assert [job.job_id for job in view.running] == [running.job_id]
        assert view.cores == {"small": Core(2, 5), "large": Core(1, 3)}
        assert view.accounts.keys() == {
            Subject.of_tenant("default"),
            Subject.of_tenant("acme"),
            Subject.of_program("main", "ada"),
            Subject.of_program("main", "eve", "acme"),
        }
        [job] = view.running
        assert view.account(job, "program").use == view.account(job, "tenant").use
        assert view.account(job, "program").use.tokens == 10
        assert view.account(job, "agent").use.tokens == 0  # it did not ask for that


async def test_a_policy_that_needs_nothing_more_costs_nothing_more(redis_url: str) -> None:
    redis = Heard(redis_url)
    async with queue_user(redis_url) as user:
        scene = Scene(user, "priority")
        await scene.begin()
        await scene.submit(ADA, 3)
        await scene.settle()
        await scene.submit(ADA, 1)
        order = Order(Functions(redis), "llm")
        queue = ModuleOrder(order, user.control, policy_named("priority"))
        queue._lists = [_List(order, float("inf"), "priority")]  # as if it had led all the time
        queue._lists_due_s = float("inf")
        redis.sent.clear()
        assert await queue.tick(scene.epoch, NOW_MS)
        assert redis.sent == ["look", "reorder"]
        redis.sent.clear()
        assert not await queue.tick(scene.epoch, NOW_MS)
        assert redis.sent == ["look"]
        await scene.serve()
        assert not await user.redis.execute("KEYS", user.keys.own("touched:*"))
    await redis.aclose()


async def test_nothing_is_noted_while_nobody_watches(user: QueueUser) -> None:
    watch = Watch(user.functions, "llm", user.keys)
    epoch = await user.lead()
    assert await watch.follow(epoch, "plas", "program")
    await user.submit(0)
    await user.finish(*await user.claim())
    assert (await watch.touched(0))[1].keys() == {"program:default ada main"}
    assert await watch.follow(epoch, "priority", None)
    await user.submit(0)
    await user.finish(*await user.claim())
    assert await watch.touched(0) == (0, {})
    assert not await watch.follow(epoch - 1, "plas", "program")
    await user.submit(0)
    await user.finish(*await user.claim())
    assert await watch.touched(0) == (0, {})


async def test_all_that_move_in_one_step_are_noted_those_that_begin_to_run_too(
    plas: Scene,
) -> None:
    await plas.submit(ADA)
    await plas.submit(BOB)
    leases = await plas.user.claim(2)
    _, touched = await plas.user.order.watch.touched(0)
    assert touched == {"program:default ada main": 1, "program:default bob main": 1}
    assert len(leases) == 2


async def test_what_is_remembered_of_a_program_goes_with_its_counters(redis_url: str) -> None:
    async with queue_user(redis_url) as user:
        scene = Scene(user, "program_fcfs")
        await scene.begin()
        await scene.submit(ADA)
        await scene.settle()
        await scene.serve()
        marks = user.keys.own("marks:llm")
        assert await user.redis.execute("HLEN", marks) == 1
        await user.redis.execute("ZADD", user.keys.own("used:llm"), 1, "program:default ada main")
        await user.order.reconcile(scene.epoch)
        assert await user.redis.execute("HLEN", marks) == 0


def test_the_widest_scope_is_watched() -> None:
    assert Needs(accounts=("program", "tenant")).watched == "tenant"
    assert Needs(accounts=("program", "agent")).watched == "agent"
    assert Needs(running=True, cores=True).watched is None


async def test_a_module_that_is_not_metered_is_while_a_policy_watches(redis_url: str) -> None:
    async with queue_user(redis_url, "tool") as user:
        epoch = await user.lead()
        assert await user.order.watch.follow(epoch, "plas", "program")
        await user.submit(0)
        await user.finish(*await user.claim(), tokens=3)
        _, accounts = await user.order.watch.accounts([Subject.of_program("main", "ada")])
        assert accounts[Subject.of_program("main", "ada")].use.tokens == 3
        assert (await user.order.watch.touched(0))[1]
