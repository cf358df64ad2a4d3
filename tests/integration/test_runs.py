"""A run is read back whole, wherever it stands, and written as a trace that adds up."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from aios_broker.contract.errors import Cancelled
from aios_broker.contract.syscall import new_id
from aios_broker.ledger.history import History
from aios_broker.ledger.ledger import Ledger
from aios_broker.ledger.lives import lives_of
from aios_broker.ledger.runs import RunFilter, Runs
from aios_broker.postgres.database import Database
from aios_broker.queues.records import JobMetadata, Submission
from aios_broker.views.trace import encoded_trace
from tests.queue_user import DATA, QueueUser, submitted


@pytest.fixture
def runs(user: QueueUser, database: Database) -> Runs:
    return Runs(History(user.redis, user.keys, database), database, user.keys.prefix)


async def submit(user: QueueUser, program: str, agent: str = "ada") -> str:
    job = Submission(new_id(), DATA, JobMetadata(agent, "llm.chat", program), "me")
    await submitted(user.queue, [job])
    return job.job_id


async def work(user: QueueUser, *programs: str) -> list[str]:
    """Let a syscall of each program run twice, the last one be cancelled as it waits."""
    ids = [await submit(user, program) for program in programs]
    for lease in await user.claim(len(ids)):
        await user.suspend(lease, b"snapshot", tokens=64)
    *leases, _ = await user.claim(len(ids), worker="other")
    await user.finish(*leases, tokens=16)
    await user.control.cancel([ids[-1]], Cancelled("enough"), module="llm")
    return ids


@pytest.mark.parametrize("drained", [0, 3, 100])
async def test_a_program_is_read_with_all_that_stand_below_it(
    user: QueueUser, database: Database, runs: Runs, drained: int
) -> None:
    one, below, _, _ = await work(user, "paper", "paper/search", "papers", "aside")
    stranger = await submit(user, "paper", agent="bob")
    if drained:
        await Ledger(database).drain(user.redis, limit=drained)

    run = await runs.newest(RunFilter("default", "ada", "paper"), 100)
    assert {each.job_id for each in lives_of(run.events)} == {one, below}
    assert all(life.is_whole and life.state == "finished" for life in lives_of(run.events))
    assert run.older is None
    everything = lives_of((await runs.newest(RunFilter(), 100)).events)
    assert len(everything) == 5
    assert stranger in {life.job_id for life in everything}


async def test_what_is_left_out_is_said_and_found_by_time(
    user: QueueUser, database: Database, runs: Runs
) -> None:
    ids = await work(user, *["paper"] * 4)
    await Ledger(database).drain(user.redis)
    rows = {row.job_id: row for row in await Ledger(database).recent()}
    newest = await runs.newest(RunFilter(program="paper"), 2)
    # Times are of milliseconds: two may be equal.
    times = sorted(rows[each].submitted_at for each in ids)
    shown = sorted(rows[life.job_id].submitted_at for life in lives_of(newest.events))
    assert shown == times[2:]
    assert newest.older is not None

    until = rows[ids[1]].submitted_at + timedelta(milliseconds=1)
    early = await runs.newest(RunFilter(since=rows[ids[0]].submitted_at, until=until), 10)
    assert {life.job_id for life in lives_of(early.events)} >= set(ids[:2])
    assert (await runs.newest(RunFilter(since=until + timedelta(days=1)), 10)).events == []


async def test_without_a_ledger_the_journal_alone_is_read(user: QueueUser) -> None:
    ids = await work(user, "paper", "aside")
    runs = Runs(History(user.redis, user.keys), None, user.keys.prefix)

    [life] = lives_of((await runs.newest(RunFilter(program="paper"), 10)).events)
    assert life.job_id == ids[0]


async def test_a_trace_has_every_syscall_and_slice_and_adds_up_to_the_ledger(
    user: QueueUser, database: Database, runs: Runs
) -> None:
    await work(user, "paper", "paper/search", "aside")
    await Ledger(database).drain(user.redis)
    lives = lives_of((await runs.newest(RunFilter(), 100)).events)
    trace = msgspec.json.decode(encoded_trace(lives, 4_000_000_000_000))

    spans: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            spans[event["args"]["syscall"]][event["cat"]].append(event)
    rows = {row.job_id: row for row in await Ledger(database).recent()}
    assert spans.keys() == rows.keys()
    for job_id, row in rows.items():
        [whole], mine = spans[job_id]["syscall"], spans[job_id]
        stays = mine["wait"] + mine["slice"]
        assert row.ended_at is not None
        life_us = (row.ended_at - row.submitted_at) / timedelta(microseconds=1)
        assert whole["dur"] == sum(stay["dur"] for stay in stays) == life_us
        assert len(mine["slice"]) == len(mine["slot"]) == row.slices == row.suspensions + 1
        for name in ("ran_ms", "tokens", "cost_nano"):
            assert sum(stay["args"][name] for stay in stays) == getattr(row, name)
            assert sum(stay["args"][name] for stay in mine["slot"]) == getattr(row, name)
        assert {slot["args"]["worker"] for slot in mine["slot"]} == {"worker", "other"}
    named = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert {"program default/ada paper/search", "worker other", "slot 1"} <= named
