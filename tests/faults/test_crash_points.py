"""Every process dies at every point of every step: all are answered once, nothing is left over.

A point is a triple: process, step (a Redis function, another command, or a transaction of
Postgres), and moment (before it, done but not heard of, heard and acted on). The default lane
takes those where most has been lost in other queues; the slow lane takes all.
"""

from __future__ import annotations

import pytest

from aios_broker.queues.functions import STEPS
from benchmarks.chaos.plan import BEGIN, COMMIT, MOMENTS, Moment, Point
from tests.faults.crash_scene import scheduler_dies, worker_dies

pytestmark = pytest.mark.timeout(120)

# What a worker of each module sends, in the scene's work. `BLMOVE`: the look for work.
WORKER_STEPS = {
    "tool": ("register", "claim", "finish", "renew", "BLMOVE", "unregister"),
    "llm": (
        "claim",
        "finish",
        "suspend",
        "slice",
        "renew",
        "emit",
        "GET",
        "HGETALL",
        "context_open",
        "context_write",
    ),
}
SCHEDULER_STEPS = (
    "lead",
    "reclaim",
    "expire",
    "reconcile",
    "move",
    "turns",
    "FUNCTION",
    "EXISTS",
    "HSET",
    "HGETALL",
    "LRANGE",
    "XLEN",
    "XINFO",
    "XRANGE",
    "XTRIM",
    BEGIN,
    COMMIT,
)
ORDERING_STEPS = ("follow", "look", "reorder")  # what it sends under a policy that reorders besides
# Called by clients and operators, or by stock RQ workers: another test, or no process of ours.
# Rare in the scene's work: killing at any moment of it is in test_scheduler_death.py and in chaos.
RARE_STEPS = {"exchange", "spill", "mend", "unlist", "vouch"}
CLIENT_STEPS = {
    *("submit", "attach", "cancel", "hold", "release", "unpark", "nice", "quota", "stop", "retry"),
    "needs",  # between a claim and the run: it changes what its lease holds, and no more
    "responses",  # the API's records: the call that they are of goes on without it
}

NO_STEPS = {"admission", "ended", "failures", "lib", "money", "rates", "routes"}

Triple = tuple[str, str, Moment]
WORKER_TRIPLES: list[Triple] = [
    (module, step, moment)
    for module, steps in WORKER_STEPS.items()
    for step in steps
    for moment in MOMENTS
]
FAST: tuple[Triple, ...] = (
    ("tool", "claim", "sent"),
    ("tool", "finish", "sent"),
    ("llm", "suspend", "sent"),
    ("llm", "slice", "after"),
    ("llm", "context_write", "sent"),
)
SCHEDULER_TRIPLES: list[Triple] = [
    (policy, step, moment)
    for policy, steps in (("rr", SCHEDULER_STEPS), ("priority", ORDERING_STEPS))
    for step in steps
    for moment in MOMENTS
]
FAST_SCHEDULER: tuple[Triple, ...] = (
    ("rr", "reclaim", "sent"),
    ("rr", COMMIT, "sent"),
    ("priority", "reorder", "sent"),
)
# Functions whose names are not their files': the file they are in.
FILES = {"context_open": "context", "context_write": "context", "follow": "watch"}


def test_every_step_has_a_process_that_dies_at_it() -> None:
    covered = {
        *WORKER_STEPS["tool"],
        *WORKER_STEPS["llm"],
        *SCHEDULER_STEPS,
        *ORDERING_STEPS,
        *CLIENT_STEPS,
        *RARE_STEPS,
        *NO_STEPS,
    }
    functions = {FILES.get(step, step) for step in covered}
    assert {step.rpartition("/")[2] for step in STEPS} - functions == set()


@pytest.mark.parametrize(("module", "step", "moment"), FAST)
async def test_a_worker_dies(redis_url: str, module: str, step: str, moment: Moment) -> None:
    await worker_dies(redis_url, module, Point(step, moment))


@pytest.mark.parametrize(("policy", "step", "moment"), FAST_SCHEDULER)
async def test_a_scheduler_dies(
    redis_url: str, database_url: str, policy: str, step: str, moment: Moment
) -> None:
    await scheduler_dies(redis_url, database_url, Point(step, moment), policy)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "step", "moment"), WORKER_TRIPLES)
async def test_a_worker_dies_at_every_point(
    redis_url: str, module: str, step: str, moment: Moment
) -> None:
    await worker_dies(redis_url, module, Point(step, moment))


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "step", "moment"), SCHEDULER_TRIPLES)
async def test_a_scheduler_dies_at_every_point(
    redis_url: str, database_url: str, policy: str, step: str, moment: Moment
) -> None:
    await scheduler_dies(redis_url, database_url, Point(step, moment), policy)
