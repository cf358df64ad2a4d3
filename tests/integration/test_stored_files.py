"""Tools that read files of an agent's storage: as that agent, copies, within bounds."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.errors import InvalidArguments, KernelError, NotFound, ToolLimit
from aios_broker.contract.storage import StorageCreate, StorageWrite
from aios_broker.contract.tools import ToolResult, ToolRun
from aios_workers.modules.state_handler import StateHandler
from aios_workers.modules.tool import stored_files
from aios_workers.runtime.registry import LoadedModule
from tests.caller import Caller, running_worker
from tests.state_scene import state_scene
from tests.tool_scene import ToolScene, answer

pytestmark = pytest.mark.timeout(180)
NOTES = "Milk\nBread and milk\n\nEggs 12\n"
SALES = "city,amount,note\nBerlin,10,a\nParis,2.5,\nBerlin,7,b\n"


@dataclass
class Kernel:
    """A caller of a kernel that has storage and tools."""

    caller: Caller
    tools: ToolScene

    async def write(self, path: str, content: str | bytes, **fields: Any) -> None:  # noqa: ANN401
        if isinstance(content, bytes):
            text = base64.b64encode(content).decode()
            await answer(self.caller, StorageCreate(path, text, "base64"), **fields)
        else:
            await answer(self.caller, StorageCreate(path, content), **fields)

    async def call(self, tool: str, /, *, agent: str | None = None, **arguments: Any) -> Any:  # noqa: ANN401
        fields = {} if agent is None else {"agent": agent}
        result = await answer(self.caller, ToolRun(tool, arguments), **fields)
        assert isinstance(result, ToolResult)
        return result.value


@pytest.fixture
async def kernel(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Kernel]:
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(state_scene(redis_url, database_url))
        loaded = LoadedModule(lambda _: StateHandler(state.services, "storage"))
        await stack.enter_async_context(running_worker(redis_url, "storage", loaded))
        tools = ToolScene(tmp_path)
        await stack.enter_async_context(tools.worker(redis_url))
        caller = Caller(redis_url)
        caller.patience_s = 60.0  # a process is started for each tool
        stack.push_async_callback(caller.aclose)
        yield Kernel(caller, tools)


async def test_text_is_found_with_its_lines(kernel: Kernel) -> None:
    await kernel.write("notes/shop.md", NOTES)
    await kernel.write("notes/deep/other.txt", "milk\n")
    await kernel.write("notes/raw.bin", b"\x00\x01milk")

    found = await kernel.call("aios/text_search", pattern="milk")
    assert found == {
        "matches": [
            {"path": "/notes/shop.md", "line": 2, "text": "Bread and milk"},
            {"path": "/notes/deep/other.txt", "line": 1, "text": "milk"},
        ],
        "files_searched": 2,
        "no_text": ["/notes/raw.bin"],
    }
    one = {"path": "/notes/shop.md"}
    alike = await kernel.call("aios/text_search", pattern="MILK", ignore_case=True, **one)
    assert [match["line"] for match in alike["matches"]] == [1, 2]
    numbers = await kernel.call("aios/text_search", pattern=r"\d+$", regex=True, context=1, **one)
    assert numbers["matches"] == [
        {"path": "/notes/shop.md", "line": 4, "text": "Eggs 12", "before": [""], "after": []}
    ]
    texts = await kernel.call("aios/text_search", pattern="milk", include="*.txt")
    assert [match["path"] for match in texts["matches"]] == ["/notes/deep/other.txt"]
    first = await kernel.call("aios/text_search", pattern="milk", max_matches=1)
    assert (len(first["matches"]), first["more"]) == (1, True)


async def test_no_pattern_takes_exponential_time(kernel: Kernel) -> None:
    await kernel.write("long.txt", "a" * 100_000 + "b\n")
    found = await kernel.call("aios/text_search", pattern="(a+)+$", regex=True)
    assert found["matches"] == []
    for pattern in ("(", "(?=a)b", r"(a)\1", "a{1000}{1000}"):
        with pytest.raises(InvalidArguments) as caught:
            await kernel.call("aios/text_search", pattern=pattern, regex=True)
        assert [fault.path for fault in caught.value.faults] == ["/pattern"]


async def test_a_csv_file_and_a_database_are_queried(kernel: Kernel, tmp_path: Path) -> None:
    await kernel.write("sales.csv", SALES)
    asked = "SELECT city, sum(amount) AS total FROM data GROUP BY city ORDER BY city"
    assert await kernel.call("aios/sqlite", path="sales.csv", query=asked) == {
        "columns": ["city", "total"],
        "rows": [["Berlin", 17], ["Paris", 2.5]],
    }
    assert await kernel.call("aios/sqlite", path="sales.csv") == {
        "tables": [{"table": "data", "columns": ["city TEXT", "amount REAL", "note TEXT"]}]
    }
    by_value = "SELECT count(*) FROM data WHERE city = ? AND note IS NOT NULL"
    found = await kernel.call(
        "aios/sqlite", path="/sales.csv", query=by_value, parameters=["Berlin"]
    )
    assert found["rows"] == [[2]]

    with sqlite3.connect(tmp_path / "made.db") as made:
        made.execute("CREATE TABLE t (a INTEGER, b BLOB)")
        made.executemany("INSERT INTO t VALUES (?, ?)", [(n, b"\x00\xff") for n in range(500)])
    made.close()
    await kernel.write("data/made.db", (tmp_path / "made.db").read_bytes())
    rows = await kernel.call(
        "aios/sqlite", path="data/made.db", query="SELECT * FROM t", max_rows=2
    )
    assert rows == {
        "columns": ["a", "b"],
        "rows": [[0, {"base64": "AP8=", "bytes": 2}], [1, {"base64": "AP8=", "bytes": 2}]],
        "more": True,
    }


QUERIES = (
    ("ATTACH '/etc/passwd' AS p", "attach"),
    ("DELETE FROM data", "only read"),
    ("DROP TABLE data", "only read"),
    ("UPDATE data SET city = 1", "only read"),
    ("CREATE TEMP TABLE x (a)", "only read"),
    ("PRAGMA query_only = OFF", "only read"),
    ("PRAGMA journal_mode = WAL", "only read"),
    ("VACUUM INTO '/tmp/x'", "only read|attach|VACUUM"),
    ("UPDATE sqlite_master SET sql = ''", "may not be modified|only read"),
    ("PRAGMA writable_schema = ON", "only read"),
    ("SELECT load_extension('x')", "load_extension|not authorized"),
    ("BEGIN", "only read"),
    ("SELECT 1; SELECT 2", "one statement"),
    ("SELECT wings FROM data", "no such column: wings; the tables are data\\(city TEXT"),
    ("SELEC 1", "syntax error"),
    ("SELECT ?", "binding|parameters"),
    (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
        "longer than 10 s",
    ),
    ("SELECT hex(zeroblob(900000000))", "too big|out of memory"),
    ("SELECT randomblob(2000000000)", "too big|out of memory"),
)


async def test_a_query_only_reads_and_ends(kernel: Kernel) -> None:
    await kernel.write("sales.csv", SALES)
    for query, words in QUERIES:
        with pytest.raises(InvalidArguments, match=words) as caught:
            await kernel.call("aios/sqlite", path="sales.csv", query=query)
        assert [fault.path for fault in caught.value.faults] == ["/query"]


async def test_what_is_no_table_is_said(kernel: Kernel) -> None:
    await kernel.write("raw.bin", bytes(range(256)))
    await kernel.write("broken.db", b"SQLite format 3\x00" + b"\xff" * 5_000)
    await kernel.write("empty.csv", "")
    await kernel.write("folder/a.csv", SALES)
    for path in ("raw.bin", "broken.db", "empty.csv", "folder"):
        with pytest.raises(InvalidArguments) as caught:
            await kernel.call("aios/sqlite", path=path, query="SELECT 1")
        assert [fault.path for fault in caught.value.faults] == ["/path"]


async def test_code_finds_the_files_that_it_is_given_and_changes_copies(kernel: Kernel) -> None:
    await kernel.write("notes/a.txt", "one")
    await kernel.write("notes/b.txt", "two")
    code = "open('storage/notes/a.txt', 'a').write('!')\nopen('storage/notes/a.txt').read()"
    told = await kernel.call("aios/python", code=code, files=["notes/a.txt"])
    assert told["value"] == "'one!'"
    seen = await kernel.call(
        "aios/shell", command="ls storage/notes; cat storage/notes/*", files=["notes"]
    )
    assert seen["stdout"] == "a.txt\nb.txt\nonetwo"
    alone = await kernel.call("aios/shell", command="ls")
    assert alone["stdout"] == ""


async def test_a_tool_of_ones_own_is_given_files_too(kernel: Kernel) -> None:
    await kernel.write("in/a.txt", "one")
    kernel.tools.module.write_text(
        "from aios_sdk import tool\n"
        "@tool(files=['in/{name}.txt'])\n"
        "def read(name: str) -> str:\n"
        "    return open('storage/in/' + name + '.txt').read()\n"
    )
    kernel.tools.describe(["read"])
    assert await kernel.call("me/read", name="a") == "one"


async def test_it_reads_as_its_agent_and_nobody_else(kernel: Kernel) -> None:
    await kernel.write("secret.txt", "of one", agent="one")
    assert (await kernel.call("aios/text_search", pattern="of one", agent="one"))["matches"]
    assert not (await kernel.call("aios/text_search", pattern="of one", agent="two"))["matches"]
    with pytest.raises(NotFound) as caught:
        await kernel.call("aios/sqlite", path="secret.txt", agent="two")
    assert caught.value.field == "body.arguments.path"


async def test_a_path_that_leads_nowhere_is_named(kernel: Kernel) -> None:
    for path in ("../x", "/../etc/passwd", "a/../../b", "nothing.txt", "\x00"):
        with pytest.raises(KernelError) as caught:
            await kernel.call("aios/sqlite", path=path)
        assert caught.value.field == "body.arguments.path"


async def test_what_is_read_is_bounded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_files, "MOST_FILES", 3)
    for number in range(4):
        await kernel.write(f"many/{number}.txt", "x")
    with pytest.raises(ToolLimit, match="more than 3 files"):
        await kernel.call("aios/text_search", pattern="x")
    monkeypatch.setattr(stored_files, "MOST_BYTES", 10)
    await kernel.write("large/a.txt", "x" * 11)
    with pytest.raises(ToolLimit, match="11 bytes"):
        await kernel.call("aios/text_search", pattern="x", path="large")


async def test_a_large_file_comes_whole(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_files, "CHUNK_BYTES", 1_000)
    await kernel.write("large.txt", "ab\u00e4\n" * 1_000)
    await answer(kernel.caller, StorageWrite("other.txt", "x"))
    code = "len(open('storage/large.txt', encoding='utf-8').read())"
    assert (await kernel.call("aios/python", code=code, files=["large.txt"]))["value"] == "4000"
