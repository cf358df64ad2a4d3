"""What an operation costs of Postgres, counted by Postgres itself: its log has every statement."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from aios_broker.access.requests import Decision, set_rule
from aios_broker.contract.errors import NotFound
from aios_broker.contract.memory import (
    MemoryAdd,
    MemoryClear,
    MemoryGet,
    MemoryList,
    MemoryLog,
    MemoryRemove,
    MemoryShare,
    MemoryStat,
    MemoryTtl,
    MemoryUpdate,
)
from aios_broker.contract.storage import StorageDelete, StorageRead, StorageWrite
from aios_broker.postgres.database import SERVICE_TIMEOUT_S
from aios_broker.postgres.store import POOL_SIZE
from aios_local.embedded.state import StateDir
from aios_workers.approvals.service import NeedsApproval
from tests.conftest import RunningPostgres
from tests.state_scene import StateScene, state_scene
from tests.waiting import wait_until_async

LINE = re.compile(r"^[A-Z]+:  ", re.MULTILINE)
STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]+): (.*)", re.DOTALL)
# What each statement of ours is recognised by, in the order in which they are looked for.
NAMES = {
    "BEGIN": "begin",
    "COMMIT": "commit",
    "ROLLBACK": "roll back",
    "set_config('role', 'aios_agent'": "be the agent, take the locks",
    "SELECT result FROM effect": "look for the effect",
    "INSERT INTO effect": "enter the effect",
    "FROM mount m": "look up the path",
    "INSERT INTO file ": "write the file",
    "UPDATE file ": "write the file",
    "ROLE aios_steward": "be the kernel",
    "ROLE aios_agent": "be the agent again",
    "INSERT INTO blob": "settle",
    "FROM approval_rule": "ask the rules",
    "UPDATE approval": "use the approval",
    "FROM approval": "look for the approval",
    "INSERT INTO approval": "ask for approval",
}

WAITING = """
    SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE NOT l.granted AND a.datname = current_database()
"""


class Log:
    """The server's log, from a moment on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size

    def statements(self) -> list[str]:
        """Return what was run since, each by its name or its first words."""
        text = self._path.read_bytes()[self._start :].decode()
        starts = [found.start() for found in LINE.finditer(text)] + [len(text)]
        entries = [text[a:b] for a, b in itertools.pairwise(starts)]
        found = [match[1] for entry in entries if (match := STATEMENT.match(entry))]
        # The pool sends an empty query to see whether a connection lives.
        return [named(" ".join(one.split())) for one in found if one.strip()]


def named(statement: str) -> str:
    return next((name for part, name in NAMES.items() if part in statement), statement[:60])


Watch = Callable[[], Log]


@pytest_asyncio.fixture
async def watched(
    redis_url: str, database_url: str, postgres_server: RunningPostgres, servers_state: StateDir
) -> AsyncIterator[tuple[StateScene, Watch]]:
    """The modules on a database that logs all that is asked of it."""
    name = re.search(r"test_\d+", database_url)
    assert name is not None
    postgres_server.execute(f"ALTER DATABASE {name[0]} SET log_statement = 'all'")
    async with state_scene(redis_url, database_url) as scene:
        await scene.known("ann")
        await scene.ask("ann", StorageWrite("first.txt", "the root is there"))
        yield scene, lambda: Log(servers_state.log_dir / "postgres.log")


ONCE = ["begin", "be the agent, take the locks", "look for the effect"]
WRITTEN = ["write the file", "be the kernel", "settle", "be the agent again"]
ENTERED = ["enter the effect", "commit"]


async def test_a_write_is_one_transaction_of_ten_statements(
    watched: tuple[StateScene, Watch],
) -> None:
    scene, watch = watched
    log = watch()
    await scene.ask("ann", StorageWrite("a.txt", "content"))
    assert log.statements() == [*ONCE, "look up the path", *WRITTEN, *ENTERED]


async def test_what_may_need_a_person_and_does_not_is_one_transaction(
    watched: tuple[StateScene, Watch],
) -> None:
    scene, watch = watched
    await scene.ask("ann", StorageWrite("/scratch/a.txt", "content"))
    log = watch()
    await scene.ask("ann", StorageWrite("/scratch/a.txt", "other"))
    assert log.statements() == [*ONCE, "look up the path", "ask the rules", *WRITTEN, *ENTERED]
    log = watch()
    await scene.ask("ann", StorageDelete("/scratch/a.txt"))
    assert transactions(log) == ["commit"]
    assert "look for the approval" not in log.statements()


async def test_what_was_done_before_is_found_by_one_look(
    watched: tuple[StateScene, Watch],
) -> None:
    scene, watch = watched
    syscall = scene.syscall("ann", StorageWrite("a.txt", "content"))
    first = await scene.run(syscall)
    log = watch()
    assert await scene.run(syscall) == first
    assert log.statements() == [*ONCE, "commit"]


async def test_a_syscall_that_runs_many_times_at_once_happens_once(scene: StateScene) -> None:
    """Its first worker was only slow: each of its runs waits for the one before, and finds it."""
    syscall = scene.syscall("ann", MemoryAdd("a note"))
    notes = await asyncio.gather(*(scene.run(syscall) for _ in range(4)))
    assert notes == [notes[0]] * 4
    assert (await scene.ask("ann", MemoryList())).notes == (notes[0],)


async def test_a_note_just_written_is_read_without_postgres(
    watched: tuple[StateScene, Watch],
) -> None:
    scene, watch = watched
    note = await scene.ask("ann", MemoryAdd("a note"))
    log = watch()
    assert await scene.ask("ann", MemoryGet(note.id)) == note
    assert log.statements() == []


async def test_many_at_once_need_no_second_connection(scene: StateScene) -> None:
    """Of more than there are connections none waits, with its own, for another one."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for each in range(2 * POOL_SIZE):
            for body in (
                MemoryAdd(f"note {each}"),
                MemoryLog("user", f"turn {each}"),
                MemoryStat(),
                StorageWrite(f"d/{each}.txt", "content"),
            ):
                tasks.create_task(scene.ask("new", body))
    assert time.monotonic() - began_s < SERVICE_TIMEOUT_S


async def test_a_block_is_opened_before_the_change_and_not_within(
    watched: tuple[StateScene, Watch],
) -> None:
    """A transaction that waits for a second one holds a connection meanwhile."""
    scene, watch = watched
    await scene.ask("ann", MemoryAdd("a note"))
    await lose_blocks(scene)
    log = watch()
    await scene.ask("ann", MemoryAdd("another note"))
    edges = [each for each in log.statements() if each in ("begin", "commit")]
    assert edges == ["begin", "commit", "begin", "commit"]


async def test_a_change_opens_no_block(watched: tuple[StateScene, Watch]) -> None:
    """Where Redis has lost the block, its notes are changed without it: the next read opens it."""
    scene, watch = watched
    notes = [await scene.ask("ann", MemoryAdd(f"note {each}")) for each in range(3)]
    async with scene.store.as_steward() as cursor:
        for operation in ("delete", "clear"):
            await set_rule(cursor, scene.tenant, None, operation, "never")
    for body in (
        MemoryUpdate(notes[0].id, content="other"),
        MemoryTtl(notes[1].id, ttl_s=60.0),
        MemoryRemove(notes[2].id),
    ):
        await lose_blocks(scene)
        log = watch()
        await scene.ask("ann", body)
        assert transactions(log) == ["commit"]
    assert (await scene.ask("ann", MemoryGet(notes[0].id))).content == "other"
    await lose_blocks(scene)
    log = watch()
    await scene.ask("ann", MemoryClear())
    assert transactions(log) == ["commit"]


async def test_a_read_whose_block_is_lost_while_it_waits_for_its_row_opens_none(
    scene: StateScene,
) -> None:
    note = await scene.ask("ann", MemoryAdd("a note"))
    await lose_blocks(scene)
    async with scene.store.as_steward() as cursor:
        await cursor.execute("SELECT FROM note WHERE id = %s FOR UPDATE", (note.id,))
        reading = asyncio.create_task(scene.ask("ann", MemoryGet(note.id)))

        async def waits() -> bool:
            return bool(await scene.rows(WAITING))

        await wait_until_async(waits)
        await lose_blocks(scene)
    assert await reading == note
    assert await scene.services.functions.connection.execute("KEYS", "*:aios:memory:*") == []
    assert await scene.ask("ann", MemoryGet(note.id)) == note


async def lose_blocks(scene: StateScene) -> None:
    await scene.services.functions.connection.execute("FLUSHALL")


async def test_only_what_is_decided_looks_first_what_a_person_made_of_it(
    watched: tuple[StateScene, Watch],
) -> None:
    scene, watch = watched
    note = await scene.ask("ann", MemoryAdd("a note"))
    syscall = scene.syscall("ann", MemoryRemove(note.id))
    log = watch()
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    assert transactions(log) == ["roll back", "commit"]  # the request is another's work
    await scene.decide(syscall.id, Decision("approved"))
    log = watch()
    await scene.run(syscall)
    found = log.statements()
    assert transactions(log) == ["commit", "commit"]
    assert found.index("look for the approval") < found.index("commit")
    assert found.count("use the approval") == 1


async def test_reading_and_asking_for_another_agents_things_are_one_transaction(
    watched: tuple[StateScene, Watch],
) -> None:
    """Also where this process has never heard of that agent."""
    scene, watch = watched
    async with scene.store.as_steward() as cursor:
        await cursor.execute("INSERT INTO agent (tenant_id, name) SELECT id, 'new' FROM tenant")
    log = watch()
    with pytest.raises(NotFound):
        await scene.ask("ann", StorageRead("a.txt", owner="new"))
    assert transactions(log) == ["roll back"]
    log = watch()
    await scene.ask("ann", MemoryShare(agent="new"))
    assert transactions(log) == ["commit"]


def transactions(log: Log) -> list[str]:
    """Return how each transaction ended."""
    found = log.statements()
    ends = [one for one in found if one in ("commit", "roll back")]
    assert len(ends) == found.count("begin")
    return ends
