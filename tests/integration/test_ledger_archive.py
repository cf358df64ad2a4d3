"""What the ledger keeps is read back whole, in order and by every filter, whoever entered it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from itertools import dropwhile
from pathlib import Path

import pytest

from aios_broker.contract.errors import WaitTimeout
from aios_broker.contract.transitions import TABLE
from aios_broker.ledger import history as history_file
from aios_broker.ledger.history import UNKNOWN, Archive, Filter, History, HistoryEvent
from aios_broker.ledger.journal import Position, Transition, read_entry
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.records import JobMetadata
from tests.queue_user import QueueUser

EVENTS = ("claim", "suspend", "claim", "finish", "fail", "reclaim", "hold", "release", "teleport")
UPGRADE_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to-upgrade.md"
ENTRIES, MOST_LINES, SYSCALLS = 60, 8, 40


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_file, "PAGE_ENTRIES", 3)


def facts_text(number: int) -> str:
    return (
        f'{{"agent":"agent-{number % 3}","kind":"llm.chat","program":"p{number % 5}",'
        f'"tenant":"t{number % 2}"}}'
    )


async def wild_journal(user: QueueUser, luck: random.Random) -> list[Transition]:
    """Write a journal of lives, lawful and not; return what it says."""
    for _ in range(ENTRIES):
        lines = []
        for _ in range(luck.randint(1, MOST_LINES)):
            number = luck.randrange(SYSCALLS)
            job_id = f"{number:02x}{'0' * 30}"
            if luck.random() < 0.4:
                lines.append(f"submit\t{job_id}\t\tclient\t{facts_text(number)}")
            elif luck.random() < 0.03:
                lines.append(luck.choice(["nonsense", "", "claim\tx\tmany\tw\t", "x" * 600]))
            else:
                detail = luck.choice(["", "5,10", "5,10,core-error", "a\\b \\N é"])
                lines.append(f"{luck.choice(EVENTS)}\t{job_id}\t{luck.randint(1, 3)}\tw\t{detail}")
        module = luck.choice(["llm", "tool"])
        await user.redis.execute("XADD", user.keys.journal, "*", "q", module, "t", "\n".join(lines))
    written = await user.redis.execute("XRANGE", user.keys.journal, "-", "+")
    return [change for entry in written for change in read_entry(entry)]


async def drained_by_turns(
    user: QueueUser, database: Database, database_url: str, luck: random.Random
) -> None:
    """Let two schedulers take turns."""
    other = Database(database_url)
    ledgers = [Ledger(database), Ledger(other)]
    while await user.redis.execute("XLEN", user.keys.journal):
        limit = luck.randint(1, 6)
        await luck.choice(ledgers).drain(user.redis, limit=limit)
    await other.aclose()


async def by_hand(database: Database, changes: Sequence[Transition]) -> list[HistoryEvent]:
    """Return what the journal said, with what the ledger knows of each syscall."""
    async with database.transaction() as cursor:
        await cursor.execute("SELECT job_id, agent, kind, program, tenant FROM syscall")
        known = {job_id: JobMetadata(*metadata) for job_id, *metadata in await cursor.fetchall()}
    return [HistoryEvent(each, known.get(each.job_id, UNKNOWN)) for each in changes]


def places(happenings: Sequence[HistoryEvent]) -> list[tuple[int, int, int]]:
    return [each.sort_key for each in happenings]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("seed", range(4))
async def test_it_is_read_as_it_was_written_whoever_entered_it(
    user: QueueUser, database: Database, database_url: str, seed: int
) -> None:
    luck = random.Random(seed)
    written = await wild_journal(user, luck)
    await drained_by_turns(user, database, database_url, luck)
    everything = await by_hand(database, written)
    history = History(user.redis, user.keys, database)

    seen: list[HistoryEvent] = []
    while more := await history.after(seen[-1].transition.position if seen else Position()):
        seen += more
    assert places(seen) == places(everything)
    assert [each.metadata for each in seen] == [each.metadata for each in everything]
    for told, wrote in zip(seen, written, strict=True):
        assert told.transition.detail == wrote.detail
        assert told.transition.anomaly >= wrote.anomaly  # what cannot be read is odd for sure

    known = [each for each in everything if each.metadata is not UNKNOWN]
    for wanted in [
        Filter(),
        Filter(agent="agent-1"),
        Filter(program="p2"),
        Filter(tenant="t0", module="llm"),
        Filter(event="finish"),
        Filter(agent="agent-2", event="claim"),
        Filter(module="tool"),
        Filter(agent="?"),
        Filter(agent="nobody"),
        Filter(agent="agent-1", program="p1"),
        Filter(event="submit", program="p4", tenant="t1"),
        Filter("0", event="suspend"),
    ]:
        among = known if wanted.job_id else everything
        matching = places([each for each in among if wanted.matches(each)])
        for limit in (1, 7, 100_000):
            assert places(await history.last(wanted, limit)) == matching[-limit:], wanted
    ledger = Ledger(database)
    for job_id in {each.transition.job_id for each in known}:
        told_of_it = lived(each.transition for each in seen if each.transition.job_id == job_id)
        assert lived(await ledger.history(job_id)) == told_of_it
        found = await history.last(Filter(job_id), 100_000)
        assert lived(each.transition for each in found) == told_of_it


def lived(changes: Iterable[Transition]) -> list[Transition]:
    """Return what happened to a syscall from the first event on that says it is one.

    By its id it is not found before: a line of a newer release, or of nonsense, begins no life.
    """
    return list(dropwhile(lambda each: each.event not in TABLE, changes))


async def test_digits_that_many_syscalls_begin_with_are_looked_for_in_all(
    user: QueueUser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "MOST_SYSCALLS", 2)
    written = await wild_journal(user, random.Random(7))
    await Ledger(database).drain(user.redis, limit=1000)
    matching = [change for change in written if change.job_id.startswith("1")]
    found = await History(user.redis, user.keys, database).last(Filter("1"), 100_000)
    assert [(each.transition.position, each.transition.ordinal) for each in found] == [
        (change.position, change.ordinal) for change in matching
    ]


async def test_a_search_that_takes_too_long_says_how_far_it_came(
    user: QueueUser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "PAGE_ENTRIES", 1)
    monkeypatch.setattr(history_file, "SEARCH_TIMEOUT_S", 0.0)
    await wild_journal(user, random.Random(1))
    await Ledger(database).drain(user.redis, limit=1000)
    with pytest.raises(WaitTimeout, match="of 9000 changes were found") as caught:
        await History(user.redis, user.keys, database).last(Filter(agent="agent-1"), 9000)
    assert "id" in str(caught.value.remedy)


async def test_entries_that_do_not_speak_of_an_agent_are_not_even_read(
    user: QueueUser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await user.submit(0)
    await Ledger(database).drain(user.redis)
    monkeypatch.setattr(history_file, "PAGE_ENTRIES", 1)
    monkeypatch.setattr(history_file, "SEARCH_TIMEOUT_S", 0.0)
    reader = Archive(database, user.keys.prefix)
    assert len(await reader.last(Filter(agent="ada"), 1)) == 1
    for nobody in (
        Filter(agent="ad"),
        Filter(program="p9"),
        Filter(tenant="x"),
        Filter(event="fail"),
        Filter(module="tool", agent="ada"),
    ):
        assert await reader.last(nobody, 5) == []  # in one page: a second one would be too late


async def test_the_query_of_the_upgrade_page_tells_the_same(
    user: QueueUser, database: Database
) -> None:
    await wild_journal(user, random.Random(5))
    await Ledger(database).drain(user.redis, limit=1000)
    changes, are_all = await Archive(database, user.keys.prefix).after(Position())
    [query] = re.findall(r"```sql\n(.*?)```", UPGRADE_PAGE.read_text(), re.DOTALL)
    async with database.transaction() as cursor:
        await cursor.execute(query.encode())
        rows = await cursor.fetchall()
    assert are_all
    assert [(at, anomaly, event, job_id) for at, _, anomaly, event, job_id, *_ in rows] == [
        (each.at, each.anomaly, each.event, each.job_id) for each in changes
    ]
