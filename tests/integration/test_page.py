"""The page by HTTP: who gets in, what forms may do, what the headers forbid."""

import hashlib
import html
import re
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime

import httpx
import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.money import NANO_PER_UNIT
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.page_links import PageLink, PageLinks
from aios_broker.queues.quota import Budget, QuotaRow, Quotas, Spent, Subject
from aios_broker.queues.tokens import Identity
from aios_broker.redis.connection import Connection
from aios_kernel_api.app import DOORS
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.page.login import COOKIE
from tests.api_scene import ACME, GLOBEX, TIMEOUT_S, ApiScene, run, serving
from tests.page_scene import csrf_in, logged_in, send_form
from tests.waiting import wait_until

PAGE_ROUTES = sorted(
    (method, re.sub(r"{\w+(:\w+)?}", "x", route.path))
    for door in DOORS
    if door.rules.is_page and not door.rules.is_public
    for route in door.routes
    for method in route.methods or ()
)


@pytest.mark.parametrize(("method", "path"), PAGE_ROUTES)
def test_nothing_is_shown_without_a_login(api: ApiScene, method: str, path: str) -> None:
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        answer = client.request(method, path)

    assert answer.status_code == 401
    if method != "HEAD":
        assert 'name="token"' in answer.text


@pytest.mark.parametrize("kind", ["expired", "revoked"])
def test_a_cookie_is_worth_what_its_token_is(api: ApiScene, kind: str) -> None:
    with httpx.Client(
        base_url=api.url, cookies={COOKIE: getattr(api, kind)}, timeout=TIMEOUT_S
    ) as client:
        assert client.get("/").status_code == 401


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/fleet?x=1", "/fleet?x=1"),
        ("/approvals/0123/deny?x=1", "/approvals/0123"),
        ("/programs/cancel", "/"),
        ("/quotas/remove", "/quotas"),
        ("/nowhere/at/all", "/"),
        ("//elsewhere.example/fleet", "/"),
        ("/logout", "/"),
    ],
)
def test_a_login_leads_to_the_view_that_was_asked_for(
    api: ApiScene, before: str, after: str
) -> None:
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        headers = {"referer": f"{api.url}{before}", "origin": api.url}
        answer = client.post("/login", data={"token": api.operator}, headers=headers)
        assert answer.headers["location"] == after


def test_a_bearer_token_opens_no_page_and_a_cookie_no_api(api: ApiScene) -> None:
    with api.client(api.operator) as client:
        assert client.get("/").status_code == 401
    with logged_in(api, api.operator) as client:
        assert client.get("/v1/workers").status_code == 401


def test_a_login_gives_a_cookie_that_no_script_reads(api: ApiScene) -> None:
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        answer = client.post(
            "/login",
            data={"token": api.operator},
            headers={"referer": f"{api.url}/fleet?x=1", "origin": api.url},
        )
        cookie = answer.headers["set-cookie"].lower()
        assert answer.headers["location"] == "/fleet?x=1"
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        assert client.get("/").status_code == 200
        assert send_form(client, "/logout").status_code == 303
        assert client.get("/").status_code == 401


@pytest.mark.parametrize(
    "referer",
    [
        "https://evil.example/fleet",
        "//evil.example",
        "{url}//evil.example",
        "{url}/logout",
        "{url}/programs/cancel",  # only forms are sent there
        "",
    ],
)
def test_a_login_leads_nowhere_else(api: ApiScene, referer: str) -> None:
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        headers = {"referer": referer.format(url=api.url)}
        answer = client.post("/login", data={"token": api.operator}, headers=headers)

    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("token", ["", "aios_nobodys", "x" * 5_000])
def test_a_wrong_token_is_refused_in_words(api: ApiScene, token: str) -> None:
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        answer = client.post("/login", data={"token": token})

    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert token not in answer.text or not token


def test_a_link_logs_in_once(api: ApiScene) -> None:
    link = PageLink()

    async def offer() -> None:
        connection = Connection(api.redis_url)
        await PageLinks(connection).offer(link, Identity("operator:olga", "", None, "operator"))
        await connection.aclose()

    run(offer())
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        client.head("/login/link", params={"key": link.key})
        first = client.get("/login/link", params={"key": link.key})
        assert (first.status_code, first.headers["location"]) == (303, "/")
        assert client.get("/fleet").status_code == 200
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as other:
        assert other.get("/login/link", params={"key": link.key}).status_code == 401
        assert other.get("/login/link", params={"key": "x" * 500}).status_code == 401
        assert other.get("/login/link").status_code == 401


FORGERIES: dict[str, Callable[[str, str], tuple[dict[str, str], dict[str, str]]]] = {
    "without the word": lambda _csrf, _url: ({}, {}),
    "with another word": lambda _csrf, _url: ({"csrf": "0" * 64}, {}),
    "from another site": lambda csrf, _url: ({"csrf": csrf}, {"origin": "https://evil.example"}),
    "cross-site": lambda csrf, url: (
        {"csrf": csrf},
        {"origin": url, "sec-fetch-site": "cross-site"},
    ),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_form_changes_nothing(api: ApiScene, kind: str) -> None:
    changing = [path for method, path in PAGE_ROUTES if method == "POST"]
    assert "/logout" in changing
    with logged_in(api, api.operator) as client:
        fields, headers = FORGERIES[kind](csrf_in(client.get("/").text), api.url)
        for path in changing:
            answer = client.post(path, data={"x": "1", **fields}, headers=headers)
            assert answer.status_code == 403, path


def test_a_form_of_another_login_changes_nothing(api: ApiScene) -> None:
    with logged_in(api, api.operator) as client, logged_in(api, api.agent) as other:
        csrf = csrf_in(other.get("/").text)
        assert client.post("/logout", data={"csrf": csrf}).status_code == 403


def test_what_a_page_may_do_is_little(api: ApiScene) -> None:
    with logged_in(api, api.operator) as client:
        for path in ("/", "/fleet", "/login", "/nothing-here"):
            answer = client.get(path)
            if path == "/nothing-here":
                assert answer.status_code == 404
                continue
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", answer.text)
            assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", answer.text)


def test_static_files_are_known_by_their_digest(api: ApiScene) -> None:
    with logged_in(api, api.operator) as client:
        addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', client.get("/").text)
        assert len(addresses) >= 4
        for address in map(html.unescape, addresses):
            answer = client.get(address)
            assert answer.status_code == 200
            digest = hashlib.sha256(answer.content).hexdigest()
            assert address.endswith(f"?{digest[:12]}")
            assert "immutable" in answer.headers["cache-control"]
        plain = client.get("/static/page.css")
        assert plain.headers["cache-control"] == "no-cache"
        again = client.get("/static/page.css", headers={"if-none-match": plain.headers["etag"]})
        assert again.status_code == 304
        for path in ("/static/nothing.js", "/static/../page/login.py", "/static/%2e%2e/login.py"):
            assert client.get(path).status_code == 404


HOSTILE = "<img src=x onerror=alert(1)>\u202egnp.exe" + "x" * 150


def test_what_an_agent_calls_itself_is_text(api: ApiScene) -> None:
    program = "p" + "<b>&'\"" + "y" * 100
    with api.client(api.token()) as client:
        answer = client.post(
            "/v1/syscalls",
            params={"wait_s": 20},
            json={"body": {"type": "tool.call", "name": HOSTILE}, "program": "hostile"},
        )
        assert answer.status_code in (200, 400, 404, 500), answer.text
        client.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": program})
    with logged_in(api, api.operator) as client:
        shown = client.get("/", params={"program": "hostile"}).text

    assert "<img" not in shown
    assert "\u202e" not in shown


def test_an_agent_sees_its_own_programs_and_no_machine_room(api: ApiScene) -> None:
    ours = api.token("page-own")
    with api.client(ours) as client:
        body = {"type": "tool.echo"}
        client.post("/v1/syscalls", params={"wait_s": 20}, json={"body": body, "program": "mine"})
    with logged_in(api, ours) as client:
        wait_until(lambda: ">mine</a>" in client.get("/").text)
        shown = client.get("/").text
        assert 'href="/fleet"' not in shown
        assert 'name="agent"' not in shown  # they are all of one
        assert client.get("/fleet").status_code == 403
        assert client.get("/parts", params={"part": "fleet"}).status_code == 403
        assert client.get("/", params={"tenant": "globex"}).status_code == 404
    with logged_in(api, api.foreigner) as client:
        assert ">mine</a>" not in client.get("/").text


@pytest.mark.parametrize(
    "query", ["state=nonsense", "page=0", "page=x", "unknown=1", "agent=" + "x" * 500, "tenant=%00"]
)
def test_an_address_that_asks_nonsense_is_refused_in_words(api: ApiScene, query: str) -> None:
    with logged_in(api, api.operator) as client:
        answer = client.get(f"/?{query}")

    assert answer.status_code == 400
    assert 'role="alert"' in answer.text


def test_a_program_is_cancelled_after_its_count_was_confirmed(api: ApiScene) -> None:
    token = api.token("page-cancelled")
    body = {"type": "llm.chat", "messages": [{"role": "user", "content": "Go on."}]}
    with api.client(token) as client:
        asked = [
            client.post(
                "/v1/syscalls", json={"body": {**body, "max_tokens": 16_000}, "program": "long"}
            ).json()["id"]
            for _ in range(3)
        ]
        with logged_in(api, api.operator) as operator:
            name = "acme page-cancelled long"
            shown = operator.get("/", params={"agent": "page-cancelled", "tenant": "acme"}).text
            assert name in shown
            question = send_form(operator, "/programs/cancel", program=name)
            assert question.status_code == 200
            assert "3 syscalls" in question.text
            assert client.get(f"/v1/syscalls/{asked[0]}").json()["state"] != "cancelled"
            done = send_form(
                operator, "/programs/cancel", program=name, confirm="yes", back="/?agent=x"
            )
            assert "3 of 3 syscalls cancelled" in done.text
            assert 'href="/?agent=x"' in done.text
        for each in asked:
            answer = client.get(f"/v1/syscalls/{each}/wait", params={"wait_s": 10})
            assert answer.json()["error"]["code"] == "cancelled"


def test_an_agent_cancels_no_other_ones_programs(api: ApiScene) -> None:
    with logged_in(api, api.agent) as client:
        for name in ("acme bob x", "globex eve x"):
            assert send_form(client, "/programs/cancel", program=name).status_code == 404
        assert send_form(client, "/programs/cancel", program="no name").status_code == 400
        elsewhere = send_form(
            client, "/programs/cancel", program="acme ada nothing", confirm="yes", back="//evil"
        )
        assert "//evil" not in elsewhere.text


def test_parts_are_sent_again_when_they_change(api: ApiScene) -> None:
    token = api.token("page-live")
    with (
        logged_in(api, token) as client,
        api.client(token) as agent,
        client.stream("GET", "/live", params={"part": "programs"}) as stream,
    ):
        lines = stream.iter_lines()
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert any("There are none" in line for line in lines if line.startswith("data"))
        agent.post(
            "/v1/syscalls",
            params={"wait_s": 20},
            json={"body": {"type": "tool.echo"}, "program": "appears"},
        )
        assert any("appears" in line for line in lines)


def test_a_stream_ends_with_its_token(api: ApiScene) -> None:
    token = api.token("page-ends")
    with (
        logged_in(api, token) as client,
        client.stream("GET", "/live", params={"part": "head"}) as stream,
    ):
        lines = stream.iter_lines()
        assert any("beat" in line for line in lines)
        api.revoke("page-ends")
        assert any(line == "event: over" for line in lines)


@pytest.mark.parametrize(
    "query", ["", "part=nothing", "&".join(["part=head"] + [f"part=p{n}" for n in range(20)])]
)
def test_a_stream_of_nothing_or_too_much_is_refused(api: ApiScene, query: str) -> None:
    with logged_in(api, api.operator) as client:
        assert client.get(f"/parts?{query}").status_code in (400, 404)


@pytest.mark.usefixtures("far_from_midnight")
def test_a_budget_is_shown_as_far_as_it_is_used(api: ApiScene) -> None:
    token = api.token("page-budget")
    spent = Spent(
        "day",
        f"{datetime.now(UTC):%Y-%m-%d}",
        "USD",
        Subject.of_agent("page-budget", ACME),
        NANO_PER_UNIT,
    )

    limits = QuotaRow(spent.subject, budget_per_day=Budget(5 * NANO_PER_UNIT // 2, "USD"))

    async def spend() -> None:
        async with aclosing(Connection(api.redis_url)) as connection:
            quotas = Quotas(Functions(connection), Keys())
            await quotas.set("llm", limits)
            await quotas.remember_spent("llm", [spent])

    run(spend())
    with api.client(token) as client:
        client.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "spends"})
    with logged_in(api, token) as client:
        wait_until(lambda: "spends" in client.get("/").text)
        shown = client.get("/").text
        assert "1.00 USD of 2.50 USD this day" in shown
        assert " 40 %" in shown


async def test_a_dashboard_is_linked_where_there_is_one(api: ApiScene) -> None:
    at = "http://127.0.0.1:9181/?a=1&b=2"
    async with (
        serving(api.redis_url, api.database_url, api_rq_dashboard_url=at) as served,
        httpx.AsyncClient(base_url=served.url, cookies={COOKIE: api.operator}) as client,
    ):
        assert f'href="{html.escape(at)}"' in (await client.get("/fleet")).text
    with logged_in(api, api.operator) as plain:
        assert "<code>rq info</code>" in plain.get("/fleet").text


@pytest.mark.parametrize("url", ["javascript:alert(1)", "//evil", "http://a:secret@host", "x"])
def test_no_other_address_is_linked(url: str) -> None:
    environ = {"AIOS_REDIS_URL": "redis://x:1", "AIOS_API_RQ_DASHBOARD_URL": url}
    with pytest.raises(InvalidConfig) as caught:
        ApiConfig.from_environment(environ)
    assert caught.value.field == "AIOS_API_RQ_DASHBOARD_URL"
    assert "secret" not in str(caught.value)


def test_an_operator_finds_an_agent_without_its_tenant(api: ApiScene) -> None:
    body = {"body": {"type": "tool.echo"}, "program": "sought"}
    for name, tenant in (("sought-once", ACME), ("sought-twice", ACME), ("sought-twice", GLOBEX)):
        with api.client(api.token(name, tenant)) as client:
            client.post("/v1/syscalls", json=body)
    with logged_in(api, api.operator) as client:

        def finds(name: str, *tenants: str) -> bool:
            text = client.get("/", params={"agent": name}).text
            return all(f">{tenant}/{name}<" in text for tenant in tenants)

        wait_until(lambda: finds("sought-once", ACME) and finds("sought-twice", ACME, GLOBEX))
        assert "acme/sought-once" in client.get("/tokens", params={"agent": "sought-once"}).text
        several = client.get("/tokens", params={"agent": "sought-twice"})
        assert several.status_code == 400
        assert "acme, globex" in several.text
        assert "There are none" in client.get("/tokens", params={"agent": "nobody-at-all"}).text
