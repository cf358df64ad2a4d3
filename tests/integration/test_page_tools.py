"""Tools and exec sessions on the page and in the API: seen by scope, closed by whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from aios_broker.contract.exec import ExecSession
from aios_broker.queues.exec_sessions import SessionRecord, SessionRecords
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from tests.api_scene import ACME, GLOBEX, ApiScene, run
from tests.integration.test_api_views import ended, items
from tests.page_scene import logged_in, send_form
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(120)
READY_S = 60.0  # a tool is loaded, a session opened, also where the machine is busy
FUNCTIONS = '''
import os, time
from aios_sdk import NetworkRule, ParallelLimits, RunLimits, tool


@tool(parallel=ParallelLimits(tool=4, agent=1), limits=RunLimits(timeout_s=600.0))
def wait_for(path: str) -> str:
    """Wait for a <b>file</b>."""
    while not os.path.exists(path):
        time.sleep(0.02)
    return "there"


@tool(destructive=True, network=(NetworkRule("api.example.org", paths=("/v1",)),))
def send(text: str) -> str:
    return text


@tool
def fail() -> None:
    raise ValueError("<script>alert(1)</script> nothing doing")
'''
NAMES = ("wait_for", "send", "fail", "missing")


@contextmanager
def having_tools(api: ApiScene, folder: Path) -> Iterator[Path]:
    """Give the kernel four tools, of which one cannot be loaded; yield their folder."""
    (folder / "functions_of_page.py").write_text(FUNCTIONS)
    file = api.kernel.config.state_dir / "tools.toml"
    file.write_text(
        "\n".join(
            f'[tools."page/{name}"]\nfunction = "functions_of_page:{name}"\npath = "{folder}"\n'
            for name in NAMES
        )
    )
    with api.client(api.operator) as client:
        wait_until(lambda: _named(client) >= {f"page/{name}" for name in NAMES}, timeout_s=READY_S)
    yield folder
    file.unlink()


@pytest.fixture(scope="module")
def tools(api: ApiScene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with having_tools(api, tmp_path_factory.mktemp("page-tools")) as folder:
        yield folder


def _named(client: httpx.Client) -> set[str]:
    return {one["card"]["name"] for one in items(client, "/v1/tools")}


def _one(client: httpx.Client, name: str) -> dict[str, Any]:
    [found] = items(client, "/v1/tools", tool=f"page/{name}")
    return found


@contextmanager
def calling(api: ApiScene, tools: Path, *tokens: str) -> Iterator[list[str]]:
    """Have each agent run a call until the block is over; yield the calls' ids."""
    until = tools / f"there-{len(list(tools.iterdir()))}"
    body = {"type": "tool.call", "tool": "page/wait_for", "arguments": {"path": str(until)}}
    ids = []
    for token in tokens:
        with api.client(token) as client:
            asked = client.post("/v1/syscalls", json={"body": body, "program": "waits"})
            ids.append(str(asked.json()["id"]))
            wait_until(lambda: len(_one(client, "wait_for")["calls"]) == 1, timeout_s=READY_S)
    try:
        yield ids
    finally:
        until.touch()
        for token, each in zip(tokens, ids, strict=True):
            with api.client(token) as client:
                client.get(f"/v1/syscalls/{each}/wait", params={"wait_s": 20})


def test_a_tool_shows_what_runs_of_it_to_whom_it_concerns(api: ApiScene, tools: Path) -> None:
    mine, theirs = api.token("page-calls"), api.token("page-calls", GLOBEX)
    with calling(api, tools, mine, theirs) as (own, other):
        with api.client(api.operator) as client:
            seen = _one(client, "wait_for")
            assert {one["id"] for one in seen["calls"]} == {own, other}
            assert [seen["places"][0][name] for name in ("taken", "limit")] == [2, 4]
            of_agents = {one["tenant"]: one for one in seen["places"] if one["agent"]}
            assert {name: one["limit"] for name, one in of_agents.items()} == {ACME: 1, GLOBEX: 1}
            assert seen["card"]["parameters"]["properties"].keys() == {"path"}
            assert all("parameters" not in one["card"] for one in items(client, "/v1/tools"))
        for token, ids in (
            (mine, [own]),
            (api.administrator, [own]),
            (api.foreign_administrator, [other]),
            (api.colleague, []),
        ):
            with api.client(token) as client:
                seen = _one(client, "wait_for")
                assert [one["id"] for one in seen["calls"]] == ids
                [places] = seen["places"]
                assert places["taken"] == len(ids)
        with logged_in(api, api.operator) as person:
            shown = person.get("/tools").text
            assert f"#s-{own}" in shown
            assert "2 of 4" in shown
            detail = person.get("/tools/page/wait_for").text
            assert "Wait for a &lt;b&gt;file&lt;/b&gt;." in detail
            assert "4, 1 per agent" in detail
            assert f'id="call-{other}"' in detail
            assert 'href="/tools/page/wait_for"' in person.get("/fleet").text
        with logged_in(api, mine) as person:
            for path in ("/tools", "/tools/page/wait_for"):
                assert own in person.get(path).text
                assert other not in person.get(path).text
            run_of_it = person.get("/program?program=waits&view=everything").text
            assert 'href="/tools/page/wait_for"' in run_of_it


def test_a_tool_says_what_it_may_and_why_it_cannot_be_called(api: ApiScene, tools: Path) -> None:
    assert tools.is_dir()
    with logged_in(api, api.operator) as person:
        listed = person.get("/tools").text
        assert "a person is asked" in listed
        assert "Network: api.example.org." in listed
        assert "cannot be loaded" in listed
        detail = person.get("/tools/page/send").text
        assert "yes: a person is asked before it runs" in detail
        assert 'data-label="Paths begin with">/v1</td>' in detail
        assert "It cannot be called:" in person.get("/tools/page/missing").text
        assert person.get("/tools/page/never").status_code == 404
        assert "tools.toml</dd>" in person.get("/tools/page/send").text
        its_own = person.get("/tools/aios/calculator").text
        assert "<dt>Described by</dt><dd>the kernel</dd>" in " ".join(its_own.split())
        assert 'data-label="Source">the kernel</td>' in listed
        assert person.get("/tools/nonsense").status_code == 400
        assert person.get("/tools?agent=x&nonsense=1").status_code == 400


def test_the_last_error_of_a_tool_is_told_to_whose_call_it_was(api: ApiScene, tools: Path) -> None:
    assert tools.is_dir()
    mine = api.token("page-fails")
    with api.client(mine) as client:
        answer = client.post(
            "/v1/syscalls?wait_s=30", json={"body": {"type": "tool.call", "tool": "page/fail"}}
        )
        assert answer.status_code != 200, answer.text
        last = _one(client, "fail")["last_failure"]
        assert (last["tenant"], last["agent"]) == (ACME, "page-fails")
        assert "nothing doing" in last["message"]
    with logged_in(api, mine) as person:
        shown = person.get("/tools").text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; nothing doing" in shown
        assert "Traceback" not in shown
        assert f"#s-{last['id']}" in shown
    for token in (api.colleague, api.foreign_administrator):
        with api.client(token) as client:
            assert _one(client, "fail")["last_failure"] is None
        with logged_in(api, token) as person:
            assert "nothing doing" not in person.get("/tools").text
    with api.client(api.operator) as client:
        assert _one(client, "fail")["last_failure"]["id"] == last["id"]


def test_a_session_is_seen_by_scope_and_closed_by_its_own(api: ApiScene) -> None:
    mine, beside = api.token("page-sessions"), api.token("page-beside")
    with api.client(mine) as client, api.client(beside) as other:
        opened = [
            ended(each, {"type": "exec.open", "name": "notes"}, program="opens")["result"]["id"]
            for each in (client, other)
        ]
        ended(client, {"type": "exec.run", "session": opened[0], "code": "1"}, program="opens")
        [seen] = items(client, "/v1/exec-sessions")
        assert (seen["agent"], seen["session"]["id"], seen["session"]["runs"]) == (
            "page-sessions",
            opened[0],
            1,
        )
    with logged_in(api, mine) as person:
        shown = person.get("/tools").text
        assert f'id="session-{opened[0]}"' in shown
        assert opened[1] not in shown
        link = f'href="/tools#session-{opened[0]}"'
        assert person.get("/program?program=opens&view=everything").text.count(link) == 2
        asked = send_form(person, "/sessions/close", session=opened[0])
        assert "all that it holds is gone" in asked.text
        assert opened[0] in person.get("/tools").text
        assert send_form(person, "/sessions/close", session="x", confirm="yes").status_code == 400
        foreign = send_form(person, "/sessions/close", session=opened[1], confirm="yes")
        assert foreign.status_code == 404
    with logged_in(api, api.operator) as person:
        shown = person.get("/tools").text
        assert opened[0] in shown
        assert opened[1] in shown
        assert 'name="session"' not in shown
        refused = send_form(person, "/sessions/close", session=opened[0], confirm="yes")
        assert refused.status_code == 403
    with logged_in(api, api.foreign_administrator) as person:
        assert not {opened[0], opened[1]} & set(person.get("/tools").text.split('"'))
    with logged_in(api, mine) as person:
        done = send_form(person, "/sessions/close", session=opened[0], confirm="yes")
        assert (done.status_code, done.headers["location"]) == (303, "/tools")
        assert opened[0] not in person.get("/tools").text
    with api.client(api.administrator) as client:  # the tenant has another one yet
        found = {one["session"]["id"] for one in items(client, "/v1/exec-sessions")}
        assert opened[1] in found
        assert opened[0] not in found
    with api.client(api.operator) as client:
        assert opened[1] in {one["session"]["id"] for one in items(client, "/v1/exec-sessions")}


def test_a_session_whose_worker_has_died_is_lost(api: ApiScene) -> None:
    async def write() -> None:
        async with aclosing(Connection(api.redis_url)) as connection:
            records = SessionRecords(connection, Keys())
            session = ExecSession("a" * 32, name="<i>notes</i>", opened_at=1.0, worker="gone")
            await records.write("page-lost", SessionRecord(session, "ada", "gone", 1.0))

    run(write())
    with api.client(api.operator) as client:
        [seen] = items(client, "/v1/exec-sessions", tenant="page-lost")
        assert (seen["session"]["state"], seen["session"]["reason"]) == ("lost", "its worker died")
        pages = [client.get("/v1/exec-sessions", params={"limit": 1}).json()]
        while pages[-1]["next"] is not None:
            query = {"limit": 1, "after": pages[-1]["next"]}
            pages.append(client.get("/v1/exec-sessions", params=query).json())
        assert [one["agent"] for page in pages for one in page["items"]].count("ada") == 1
    with logged_in(api, api.operator) as person:
        shown = person.get("/tools?tenant=page-lost").text
        assert "its worker died" in shown
        assert "&lt;i&gt;notes&lt;/i&gt;" in shown
