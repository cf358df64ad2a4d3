"""The audit log: who may write in the database can neither change, add nor remove a line unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, LiteralString, cast

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import namedtuple_row

from aios_broker.access.audit import (
    FIRST_HASH,
    AuditLine,
    AuditVerdict,
    AuditWatch,
    Beginning,
    append_line,
    begin_chain,
    in_one,
    in_pieces,
    line_hash,
    verify,
)
from aios_broker.audit_folder import AuditFolder, NotedLine
from aios_broker.contract.access import AccessAudit, AccessGrant, ObjectRef
from aios_broker.contract.errors import AccessDenied, DeadlineExceeded, InvalidConfig, KernelError
from aios_broker.contract.storage import StorageMkdir
from aios_broker.postgres.store import Cursor, Store
from aios_kernel_api.rest import access
from tests.conftest import RunningPostgres
from tests.state_scene import AUDIT_KEY, StateScene

OTHER_KEY = b"\xff" * 32
LINES = 12
LAST = 2**63 - 1  # the highest number that a line can have


class Forger:
    """Whoever owns the database, its superuser: the guard of the table is no hindrance."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self._connection = connection

    def run(self, statement: LiteralString, *values: object) -> None:
        self._connection.execute(statement, values or None)

    def insert(self, seq: int, line: AuditLine, *, previous: str, key: bytes | None) -> str:
        """Put a line in, hashed as well as its writer can; return the hash."""
        at = datetime.now(UTC)
        signed = line_hash(key or b"", previous, seq, at, line)
        self.run(
            "INSERT INTO audit (seq, at, tenant, actor, action, object, outcome, syscall_id,"
            " detail, previous_hash, hash) VALUES (%s,%s,%s,%s,%s,%s,%s,'','{}',%s,%s)",
            seq,
            at,
            *(line.tenant, line.actor, line.action, line.object, line.outcome),
            *(previous, signed),
        )
        return signed


@pytest.fixture
def forger(database_url: str, postgres_server: RunningPostgres) -> Iterator[Forger]:
    name = database_url.partition("@/")[2].partition("?")[0]
    with psycopg.connect(postgres_server.superuser_url(name), autocommit=True) as connection:
        connection.execute("ALTER TABLE audit DISABLE TRIGGER audit_guard")
        connection.execute("ALTER TABLE audit DROP CONSTRAINT ck_audit_numbered_from_1")
        yield Forger(connection)


@pytest.fixture
def folder(tmp_path: Path) -> AuditFolder:
    return AuditFolder(tmp_path / "audit")


async def write_lines(scene: StateScene, count: int = LINES) -> None:
    async with scene.store.as_steward() as cursor:
        for number in range(count):
            line = AuditLine("default", "ann", "memory.remove", f"note {number}", "done")
            await append_line(cursor, line)


async def noted(scene: StateScene, folder: AuditFolder) -> NotedLine:
    folder.made_key()
    await AuditWatch(scene.store, folder).step()
    found = folder.noted()
    assert found is not None
    return found


async def verdict(
    scene: StateScene, seen: NotedLine | None = None, key: bytes = AUDIT_KEY
) -> AuditVerdict:
    async with scene.store.as_steward() as cursor:
        found = await verify(in_one(cursor), key, seen)
    assert await verify(in_pieces(scene.store), key, seen) == found
    return found


async def test_a_log_of_any_length_is_walked_in_transactions_that_are_short(
    scene: StateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_lines(scene, 8)
    opened: list[int] = []
    real = scene.store.as_steward

    def counted() -> AbstractAsyncContextManager[Cursor]:
        opened.append(1)
        return real()

    monkeypatch.setattr(scene.store, "as_steward", counted)
    found = await verify(in_pieces(scene.store), AUDIT_KEY, None)
    assert (found.lines, found.broken_seq) == (8, None)
    assert len(opened) == 3  # where it begins, its lines, and that there are no more


async def test_the_api_walks_for_so_long_and_says_what_to_do_instead(
    scene: StateScene, folder: AuditFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.made_key()
    kernel = SimpleNamespace(config=SimpleNamespace(audit_folder=folder), needed_store=scene.store)
    asked = cast("Any", SimpleNamespace(kernel=kernel))
    assert (await access.verify_audit(asked)).broken_seq is None
    monkeypatch.setattr(access, "MOST_VERIFY_S", 0.0)
    with pytest.raises(DeadlineExceeded, match="too long") as late:
        await access.verify_audit(asked)
    assert "aios audit verify" in str(late.value.remedy)


async def test_an_agent_sees_its_own_lines_and_they_verify(scene: StateScene) -> None:
    await scene.group("team", "ann", "bob")
    await scene.ask("ann", StorageMkdir("plans"))
    await scene.ask("ann", AccessGrant(ObjectRef("directory", "plans"), ("read",), group="team"))
    lines = (await scene.ask("ann", AccessAudit())).entries
    assert [line.action for line in lines] == [
        "access.grant",
        "access.group_add",
        "approval.asked",
        "access.group_create",
    ]
    assert (await scene.ask("bob", AccessAudit())).entries == ()  # another's are not its business
    found = await verdict(scene)
    assert (found.broken_seq, found.lines, found.unproven) == (None, 5, 0)


COLUMNS = "at, tenant, actor, action, object, outcome, syscall_id, detail"


@pytest.mark.parametrize(
    ("forgery", "broken_seq", "why"),
    [
        ("UPDATE audit SET object = 'x' WHERE seq = 6", 6, "changed after"),
        ("UPDATE audit SET actor = 'eve' WHERE seq = 6", 6, "changed after"),
        ("UPDATE audit SET at = at + interval '1 s' WHERE seq = 6", 6, "changed after"),
        ("UPDATE audit SET at = 'infinity' WHERE seq = 6", 6, "changed after"),
        ("UPDATE audit SET hash = '\u00e9' WHERE seq = 6", 6, "changed after"),
        ("UPDATE audit SET detail = '[1]' WHERE seq = 12", 12, "changed after"),
        (
            "UPDATE audit SET detail = (repeat('[', 5000) || repeat(']', 5000))::json"
            " WHERE seq = 12",
            12,
            "changed after",
        ),
        ("DELETE FROM audit WHERE seq = 6", 7, "line 6 is missing"),
        ("DELETE FROM audit WHERE seq < 6", 6, "line 1 is missing"),
        ("DELETE FROM audit WHERE seq > 6", 7, "line 12 was noted"),
        ("DELETE FROM audit WHERE seq = 12", 12, "line 12 was noted"),
        ("DELETE FROM audit", 1, "line 12 was noted"),
        ("TRUNCATE audit", 1, "line 12 was noted"),
        (f"INSERT INTO audit SELECT -5, {COLUMNS}, '', '' FROM audit WHERE seq = 6", -5, "put in"),
        (f"INSERT INTO audit SELECT 0, {COLUMNS}, '', '' FROM audit WHERE seq = 1", 0, "put in"),
        (
            f"INSERT INTO audit SELECT 13, {COLUMNS}, hash, hash FROM audit WHERE seq = 12",
            13,
            "not written with this key",
        ),
        (
            f"INSERT INTO audit SELECT {LAST}, {COLUMNS}, hash, hash FROM audit WHERE seq = 12",
            LAST,
            "line 13 is missing",
        ),
        (
            "UPDATE audit SET seq = -seq WHERE seq IN (6, 7);"
            "UPDATE audit SET seq = 13 + seq WHERE seq < 0",
            6,
            "does not follow",
        ),
    ],
)
async def test_each_change_is_found(
    scene: StateScene,
    forger: Forger,
    folder: AuditFolder,
    forgery: LiteralString,
    broken_seq: int,
    why: str,
) -> None:
    await write_lines(scene)
    seen = await noted(scene, folder)
    assert (await verdict(scene, seen)).broken_seq is None
    forger.run(forgery)
    found = await verdict(scene, seen)
    assert found.broken_seq == broken_seq
    assert why in found.why


async def test_to_hash_anew_needs_the_key(scene: StateScene, forger: Forger) -> None:
    await write_lines(scene)
    [before] = await scene.rows("SELECT hash FROM audit WHERE seq = 5")
    forger.run("DELETE FROM audit WHERE seq > 5")
    previous = before.hash
    for seq in range(6, LINES + 1):
        line = AuditLine("default", "eve", "memory.remove", "forged", "done")
        previous = forger.insert(seq, line, previous=previous, key=OTHER_KEY)
    found = await verdict(scene)
    assert (found.broken_seq, found.lines) == (6, 6)
    assert "not written with this key" in found.why


async def test_lines_that_were_cut_off_are_missed_when_others_came_since(
    scene: StateScene, forger: Forger, folder: AuditFolder
) -> None:
    await write_lines(scene)
    seen = await noted(scene, folder)
    forger.run("DELETE FROM audit WHERE seq > 6")
    await write_lines(scene)  # the kernel goes on: its own lines, with its own key
    assert (await verdict(scene)).broken_seq is None
    found = await verdict(scene, seen)
    assert found.broken_seq == LINES
    assert "another line was noted" in found.why
    with pytest.raises(KernelError, match="line 12 of the audit log"):
        await AuditWatch(scene.store, folder).step()
    assert folder.noted() == seen  # what proves it is kept


FORGED = AuditLine("default", "ann", "memory.remove", "forged", "done")


async def begun(
    scene: StateScene, seen: NotedLine | None = None, store: Store | None = None
) -> Beginning:
    async with (store or scene.store).as_steward() as cursor:
        return await begin_chain(cursor, "operator:ann", seen)


async def test_a_forged_newest_line_is_not_built_upon(scene: StateScene, forger: Forger) -> None:
    await write_lines(scene, 3)
    forger.insert(LAST, FORGED, previous=FIRST_HASH, key=None)
    with pytest.raises(InvalidConfig, match="not written with the key") as caught:
        await write_lines(scene, 1)
    assert "aios audit begin" in str(caught.value.remedy)
    with pytest.raises(InvalidConfig, match="leaves no number"):
        await begun(scene)


async def test_a_forged_line_that_is_taken_away_again_leaves_nothing_to_miss(
    scene: StateScene, folder: AuditFolder, forger: Forger
) -> None:
    await write_lines(scene, 3)
    seen = await noted(scene, folder)
    [last] = await scene.rows("SELECT hash FROM audit WHERE seq = 3")
    forger.insert(4, FORGED, previous=last.hash, key=None)
    with pytest.raises(InvalidConfig, match="line 4 of the audit log"):
        await AuditWatch(scene.store, folder).step()
    assert folder.noted() == seen
    forger.run("DELETE FROM audit WHERE seq = 4")
    await write_lines(scene, 1)
    found = await verdict(scene, await noted(scene, folder))
    assert (found.broken_seq, found.lines, found.noted_seq) == (None, 4, 4)


async def test_what_was_proven_when_a_chain_began_stays_proven(
    scene: StateScene, folder: AuditFolder, forger: Forger
) -> None:
    await write_lines(scene, 5)
    forger.insert(6, FORGED, previous=FIRST_HASH, key=None)
    first = await begun(scene)
    assert (first.lines, first.broken_seq) == (6, 6)
    assert [(each.first, each.last) for each in first.proven] == [(1, 5)]
    await write_lines(scene, 3)  # 8 to 10, behind the one that began: 7
    found = await verdict(scene, await noted(scene, folder))
    assert (found.broken_seq, found.lines, found.unproven) == (None, 9, 1)
    forger.run("UPDATE audit SET actor = 'eve' WHERE seq IN (3, 9)")
    found = await verdict(scene)
    assert (found.broken_seq, found.lines, found.unproven) == (3, 3, 3)
    assert "changed after" in found.why
    second = await begun(scene)
    assert [(each.first, each.last) for each in second.proven] == [(1, 2), (7, 8)]
    assert (second.lines, second.broken_seq) == (10, 3)
    found = await verdict(scene)
    assert (found.broken_seq, found.lines, found.unproven) == (None, 5, 6)


@pytest.mark.parametrize(
    ("forgery", "broken_seq", "why"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE seq = 2", 2, "changed after"),
        ("DELETE FROM audit WHERE seq = 2", 3, "line 2 is missing"),
        ("DELETE FROM audit WHERE seq <= 4", 1, "line 1 is missing"),
        ("DELETE FROM audit WHERE seq = 4", 4, "line 4 is missing"),
    ],
)
async def test_a_change_of_what_stays_proven_is_found(
    scene: StateScene, forger: Forger, forgery: LiteralString, broken_seq: int, why: str
) -> None:
    await write_lines(scene, 4)
    forger.insert(5, FORGED, previous=FIRST_HASH, key=None)
    await begun(scene)
    assert (await verdict(scene)).broken_seq is None
    forger.run(forgery)
    found = await verdict(scene)
    assert found.broken_seq == broken_seq
    assert why in found.why


async def test_a_line_of_another_branch_takes_no_proven_ones_place(
    scene: StateScene, forger: Forger
) -> None:
    await write_lines(scene, 3)
    forger.run("CREATE TABLE kept AS SELECT * FROM audit WHERE seq = 3")
    forger.run("DELETE FROM audit WHERE seq = 3")
    await write_lines(scene, 1)  # the kernel's own, too, and none was noted
    await begun(scene)
    forger.run("DELETE FROM audit WHERE seq = 3")
    forger.run("INSERT INTO audit SELECT * FROM kept")
    found = await verdict(scene)
    assert (found.broken_seq, found.why) == (
        3,
        "another line was here when the chain behind it began",
    )
    forger.run("DROP TABLE kept")


async def test_a_line_that_was_put_in_leaves_the_others_proven(
    scene: StateScene, forger: Forger
) -> None:
    await write_lines(scene, 3)
    forger.insert(-5, FORGED, previous="", key=None)
    found = await begun(scene)
    assert (found.broken_seq, found.why, found.lines) == (-5, "it was put in", 4)
    assert [(each.first, each.last) for each in found.proven] == [(1, 3)]
    after = await verdict(scene)
    assert (after.broken_seq, after.lines, after.unproven) == (None, 4, 1)


async def test_a_host_with_another_key_writes_nothing(
    scene: StateScene, database_url: str, folder: AuditFolder
) -> None:
    await write_lines(scene, 3)
    for key in (folder.made_key(), None):
        store = Store(database_url, audit_key=key)
        with pytest.raises(InvalidConfig) as caught:
            async with store.as_steward() as cursor:
                await append_line(cursor, AuditLine("default", "ann", "x", "y", "done"))
        assert caught.value.field == "AIOS_AUDIT_DIR"
        await store.aclose()
    assert (await verdict(scene)).lines == 3


async def test_a_new_chain_goes_on_where_the_key_was_lost(
    scene: StateScene, database_url: str, folder: AuditFolder, forger: Forger
) -> None:
    await write_lines(scene, 3)
    forger.run("UPDATE audit SET actor = 'eve' WHERE seq = 2")
    key = folder.made_key()
    store = Store(database_url, audit_key=key)
    found_then = await begun(scene, store=store)
    assert (found_then.lines, found_then.proven, found_then.broken_seq) == (3, (), 1)
    async with store.as_steward() as cursor:
        await append_line(cursor, AuditLine("default", "ann", "x", "y", "done"))
    found = await verdict(scene, key=key)
    assert (found.broken_seq, found.lines, found.unproven) == (None, 2, 3)
    forger.run("UPDATE audit SET actor = 'eve' WHERE seq = 5")
    assert (await verdict(scene, key=key)).broken_seq == 5
    # Whoever has no key begins none.
    own = AuditLine("*", "operator:ann", "audit.begin", "audit log", "done")
    forger.insert(6, own, previous=FIRST_HASH, key=None)
    assert (await verdict(scene, key=key)).broken_seq == 5
    await store.aclose()


async def test_who_takes_no_role_sees_no_row(scene: StateScene, database_url: str) -> None:
    await scene.known("ann")
    await scene.ask("ann", StorageMkdir("plans"))
    await write_lines(scene, 3)
    with psycopg.connect(database_url.replace("+psycopg", "")) as login:
        for table in ("agent", "directory", "audit"):
            assert login.execute(f"SELECT FROM {table}".encode()).rowcount == 0


@pytest.mark.parametrize("number", [0, 1, 4, 2**62])
async def test_an_agents_session_adds_no_line(scene: StateScene, number: int) -> None:
    await scene.known("ann")
    await write_lines(scene, 3)
    async with scene.store.as_steward() as cursor:
        ann = await scene.store.agent("ann", "default", cursor)
    with pytest.raises(AccessDenied):
        async with scene.store.as_agent(ann) as cursor:
            await cursor.execute(
                "INSERT INTO audit (seq, at, tenant, actor, action, object, outcome, syscall_id,"
                " detail, previous_hash, hash)"
                " VALUES (%s, now(), 'default', 'ann', 'x', 'y', 'z', '', '{}', '', '')",
                (number,),
            )
    for statement in ("UPDATE audit SET actor = 'bob'", "DELETE FROM audit"):
        with pytest.raises(AccessDenied):
            async with scene.store.as_agent(ann) as cursor:
                await cursor.execute(statement)
    assert (await verdict(scene)).lines == 3


async def test_the_tables_owner_is_refused_a_change(scene: StateScene, database_url: str) -> None:
    await write_lines(scene, 3)
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as owner:
        for statement in ("UPDATE audit SET actor = 'eve'", "DELETE FROM audit", "TRUNCATE audit"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute(statement.encode())


async def test_what_is_told_is_hashed_as_it_is_read_back(scene: StateScene) -> None:
    odd = {"a": 1e300, "b": -0.0, "c": 1.0, "d": "\u00e9\u2028", "e": [None, True, 2**63]}
    async with scene.store.as_steward() as cursor:
        line = AuditLine("default", "ann", "x", "y", "done", detail=odd)
        await append_line(cursor, line)
    assert (await verdict(scene)).broken_seq is None


FORGERIES = st.one_of(
    st.tuples(st.just("UPDATE audit SET object = object || 'x' WHERE seq = {}"), st.integers(1, 8)),
    st.tuples(st.just("UPDATE audit SET hash = repeat('0', 64) WHERE seq = {}"), st.integers(1, 8)),
    st.tuples(st.just("DELETE FROM audit WHERE seq = {}"), st.integers(1, 8)),
    st.tuples(st.just("DELETE FROM audit WHERE seq >= {}"), st.integers(1, 8)),
    st.tuples(st.just("DELETE FROM audit WHERE seq <= {}"), st.integers(1, 8)),
    st.tuples(st.just("UPDATE audit SET seq = seq + 100 WHERE seq >= {}"), st.integers(1, 8)),
    st.tuples(st.just("UPDATE audit SET at = now() WHERE seq = {}"), st.integers(1, 8)),
    st.tuples(
        st.just(
            f"INSERT INTO audit SELECT {{}}, {COLUMNS}, previous_hash, hash FROM audit"
            " WHERE seq = (SELECT max(seq) FROM audit) ON CONFLICT DO NOTHING"
        ),
        st.integers(-9, 30),
    ),
)
_CONTENT = "SELECT seq, hash, object, at FROM audit ORDER BY seq"


async def test_whatever_is_changed_is_found(
    scene: StateScene, database_url: str, postgres_server: RunningPostgres, folder: AuditFolder
) -> None:
    await write_lines(scene, 8)
    seen = await noted(scene, folder)
    name = database_url.partition("@/")[2].partition("?")[0]
    connection = await psycopg.AsyncConnection.connect(
        postgres_server.superuser_url(name), row_factory=namedtuple_row
    )
    await connection.execute("ALTER TABLE audit DISABLE TRIGGER audit_guard")
    await connection.execute("ALTER TABLE audit DROP CONSTRAINT ck_audit_numbered_from_1")
    cursor = connection.cursor()

    async def forge(changes: list[tuple[str, int]]) -> None:
        async with connection.transaction(force_rollback=True):
            before = await (await cursor.execute(_CONTENT)).fetchall()
            for statement, number in changes:
                await cursor.execute(statement.format(number).encode())
            after = await (await cursor.execute(_CONTENT)).fetchall()
            found = await verify(in_one(cursor), AUDIT_KEY, seen)
            assert (found.broken_seq is None) == (before == after), found

    @settings(max_examples=60, deadline=None)
    @given(st.lists(FORGERIES, max_size=3))
    def explore(changes: list[tuple[str, int]]) -> None:
        task = asyncio.run_coroutine_threadsafe(forge(changes), loop)
        task.result(20)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(explore)
    await connection.close()
