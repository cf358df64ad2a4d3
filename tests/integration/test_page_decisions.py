"""The page's views of what people decide: by scope, and as the REST operations have it."""

import html
import re
from collections.abc import Mapping
from contextlib import aclosing

import httpx
import pytest

from aios_broker.postgres.store import Store
from aios_kernel_api.page.decisions.agents import TOKENS_SHOWN
from aios_kernel_api.page.decisions.approvals import PAGE_LENGTH
from tests.api_scene import ACME, ApiScene, run
from tests.integration.test_api_views import ended, items, waiting_approval
from tests.page_scene import logged_in, send_form

MANY, EACH = 10, 1_000  # agents; an agent may have no more that wait for a person
_MANY_PARKED = """
    INSERT INTO approval (id, tenant_id, agent_id, job_id, module, kind, operation, arguments,
                          arguments_sha256, asked_sha256, what, objects, state, expires_at)
    SELECT md5(a.name || n), a.tenant_id, a.id, md5('job' || a.name || n), 'storage',
           'storage.delete', 'delete', '{}', md5(a.name || n), md5(a.name || n),
           'delete /' || a.name || '/' || n || '.md', '[]', 'waiting', now() + interval '1 day'
      FROM agent a JOIN tenant t ON t.id = a.tenant_id,
           (SELECT %s AS tenant, %s AS agent, generate_series(1, %s) AS n) AS asked
     WHERE t.name = asked.tenant AND a.name = asked.agent
"""
HOSTILE = "<script>alert(1)</script> \u202ecod.exe"


def asked_to_delete(client: httpx.Client, path: str) -> dict[str, str]:
    """Have an agent ask for a file's deletion; return what waits."""
    ended(client, {"type": "storage.write", "path": path, "content": "kept"})
    return waiting_approval(client, {"type": "storage.delete", "path": path})


def test_an_operator_sees_what_would_go_and_approves(api: ApiScene) -> None:
    with api.client(api.token()) as agent, logged_in(api, api.operator) as person:
        one = asked_to_delete(agent, "/reports/q3.md")
        listed = person.get("/approvals").text
        assert f"/approvals/{one['id']}" in listed
        led = person.get(f"/approvals/of/{one['syscall_id']}")
        assert led.headers["location"] == f"/approvals/{one['id']}"
        assert f"/approvals/of/{one['syscall_id']}" in person.get("/?state=parked").text
        shown = person.get(f"/approvals/{one['id']}").text
        for part in ("reports/q3.md", one["syscall_id"], one["arguments_sha256"]):
            assert part in shown
        assert re.search(
            r"delete: file /reports/q3\.md, version 1, 4 bytes, sha256 [0-9a-f]{12}<", shown
        )
        answer = send_form(person, f"/approvals/{one['id']}/approve")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/approvals/{one['id']}")
        done = agent.get(f"/v1/syscalls/{one['syscall_id']}/wait", params={"wait_s": 20}).json()
        assert done["state"] == "finished", done
        after = person.get(f"/approvals/{one['id']}").text
        assert "What it allowed has run" in after
        assert "/approve" not in after
        assert send_form(person, f"/approvals/{one['id']}/approve").status_code == 412


def test_a_person_denies_and_says_why(api: ApiScene) -> None:
    with api.client(api.token()) as agent, logged_in(api, api.operator) as person:
        one = asked_to_delete(agent, "/kept.md")
        send_form(person, f"/approvals/{one['id']}/deny", reason=" still <i>needed</i> ")
        done = agent.get(f"/v1/syscalls/{one['syscall_id']}/wait", params={"wait_s": 20}).json()
        assert done["error"]["code"] == "approval-denied"
        assert "still <i>needed</i>" in done["error"]["message"]
        assert "still &lt;i&gt;needed&lt;/i&gt;" in person.get(f"/approvals/{one['id']}").text


def test_an_edit_is_shown_before_it_runs(api: ApiScene) -> None:
    with api.client(api.token("edited")) as agent, logged_in(api, api.operator) as person:
        ended(agent, {"type": "access.group_create", "group": "edited"})
        with api.client(api.token("joins-edited")) as member:
            ended(member, {"type": "access.whoami"})
        body = {"type": "access.group_add", "group": "edited", "agent": "joins-edited"}
        one = waiting_approval(agent, {**body, "role": "admin"})
        arguments = '{"group": "edited", "agent": "joins-edited"}'
        edited = send_form(person, f"/approvals/{one['id']}/edit", arguments=arguments)
        assert edited.status_code == 200, edited.text
        assert re.search(r'class="removed">-.*admin', edited.text)
        assert agent.get(f"/v1/approvals/{one['id']}").json()["state"] == "waiting"
        kept = re.search(r'<textarea name="arguments"[^>]*>([^<]*)<', edited.text)
        assert kept is not None
        send_form(person, f"/approvals/{one['id']}/approve", arguments=html.unescape(kept[1]))
        done = agent.get(f"/v1/syscalls/{one['syscall_id']}/wait", params={"wait_s": 20}).json()
        assert done["state"] == "finished", done
        [group] = [each for each in items(agent, "/v1/groups") if each["name"] == "edited"]
        assert group["members"] == {"edited": "admin", "joins-edited": "member"}


@pytest.mark.parametrize("text", ["nonsense", '{"nonsense": 1}', "[]"])
def test_an_edit_that_is_none_decides_nothing(api: ApiScene, text: str) -> None:
    with api.client(api.token()) as agent, logged_in(api, api.operator) as person:
        one = asked_to_delete(agent, "/x")
        answer = send_form(person, f"/approvals/{one['id']}/approve", arguments=text)
        assert answer.status_code == 400
        assert agent.get(f"/v1/approvals/{one['id']}").json()["state"] == "waiting"


def test_what_an_agent_wrote_is_text(api: ApiScene) -> None:
    with api.client(api.token()) as agent, logged_in(api, api.operator) as person:
        write = {"type": "storage.write", "path": "/<img src=x onerror=alert(1)>"}
        ended(agent, {**write, "content": f"{HOSTILE}\nas it was\n"})
        one = waiting_approval(agent, {**write, "content": f"{HOSTILE}\nas it is\n"})
        shown = person.get(f"/approvals/{one['id']}").text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; \\u202ecod.exe" in shown
        assert re.search(r'class="removed">-as it was', shown)
        assert re.search(r'class="added">\+as it is', shown)
        for text in (shown, person.get("/approvals").text, person.get("/audit").text):
            assert "&lt;img src=x onerror=alert(1)&gt;" in text
            assert not re.search("<img|<script>alert|\u202e", text)
        raw = person.get(f"/approvals/{one['id']}/arguments")
        assert raw.headers["content-type"].startswith("text/plain")
        assert raw.headers["x-content-type-options"] == "nosniff"
        assert raw.text.isascii()


def test_approvals_are_seen_by_whose_they_are(api: ApiScene) -> None:
    mine = api.token()
    with api.client(mine) as agent:
        one = asked_to_delete(agent, "/mine")
    path = f"/approvals/{one['id']}"
    with logged_in(api, mine) as person:
        shown = person.get(path)
        assert shown.status_code == 200
        assert f"{path}/approve" not in shown.text
        assert send_form(person, f"{path}/approve").status_code == 403
    for token in (api.foreigner, api.foreign_administrator):
        with logged_in(api, token) as person:
            assert person.get(path).status_code == 404
            assert person.get(f"{path}/arguments").status_code == 404
            assert person.get(f"/approvals/of/{one['syscall_id']}").status_code == 404
            assert send_form(person, f"{path}/deny").status_code == 404
            assert one["id"] not in person.get("/approvals").text


async def parked_already(api: ApiScene, tenant: str, agents: Mapping[str, int]) -> None:
    """Have so many calls of agents wait for a person."""
    async with aclosing(Store(api.database_url)) as store, store.as_steward() as cursor:
        for name, number in agents.items():
            await cursor.execute(_MANY_PARKED, (tenant, name, number))
            assert cursor.rowcount == number


def seen(person: httpx.Client, path: str) -> str:
    answer = person.get(path)
    assert answer.status_code == 200, answer.text[:1_000]
    return answer.text


def test_ten_thousand_parked_calls_hide_nobodys_only_one(api: ApiScene) -> None:
    tenant, many = "parks", [f"parks-many-{number}" for number in range(MANY)]
    for name in (*many, "parks-one"):
        with api.client(api.token(name, tenant)) as agent:
            ended(agent, {"type": "access.whoami"})
    run(parked_already(api, tenant, {**dict.fromkeys(many, EACH), "parks-one": 1}))
    boss = api.token("parks-boss", tenant, scope="administrator")
    with logged_in(api, boss) as person:
        pages = [seen(person, "/approvals")]
        for _ in range(2):
            [further] = re.findall(r'rel="next" href="([^"]+)"', pages[-1])
            pages.append(seen(person, html.unescape(further)))
        shown = [re.findall(r'id="approval-([0-9a-f]{32})"', text) for text in pages]
        assert [len(each) for each in shown] == [PAGE_LENGTH] * 3
        assert len(set().union(*shown)) == 3 * PAGE_LENGTH
        assert "delete /parks-one/1.md" in pages[0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/agents?agent={'x' * 200}", 400),
        (f"/?program={'x' * 300}", 400),
        ("/approvals?state=all", 200),
        ("/approvals?state=nonsense", 400),
        ("/approvals?x=1", 400),
        (f"/approvals/{'f' * 32}", 404),
        (f"/approvals/{'x' * 300}", 404),
        ("/agents/acme/nobody-of-this-name", 404),
        ("/agents?after=nonsense", 400),
        ("/grants?after=nonsense", 400),
    ],
)
def test_an_address_that_leads_nowhere_says_so(api: ApiScene, path: str, status: int) -> None:
    with logged_in(api, api.operator) as person:
        assert person.get(path).status_code == status


def test_what_is_the_operators_is_not_offered_to_others(api: ApiScene) -> None:
    forms = ("/suspensions", "/suspensions/end", "/rights", "/policy", "/quotas", "/audit/verify")
    with logged_in(api, api.administrator) as person:
        for path in ("/agents", "/agents/acme/boss", "/quotas", "/audit", "/tokens"):
            text = person.get(path).text
            assert not [form for form in forms if f'action="{form}"' in text], path
        assert person.get("/policy").status_code == 403
        for path in forms:
            answer = send_form(
                person, path, tenant=ACME, agent="bob", right="decide", given="true", module="llm"
            )
            assert answer.status_code == 403, path
        assert person.get("/agents?tenant=globex").status_code == 404
    with api.client(api.operator) as operator:
        assert "bob" not in [one["agent"] for one in items(operator, "/v1/suspensions")]


def test_an_agent_is_suspended_allowed_and_goes_on(api: ApiScene) -> None:
    token = api.token("page-stopped")
    whose = {"tenant": ACME, "agent": "page-stopped", "back": "/agents/acme/page-stopped"}
    with api.client(token) as agent, logged_in(api, api.operator) as person:
        ended(agent, {"type": "access.whoami"})
        try:
            answer = send_form(person, "/suspensions", **whose)
            assert answer.headers["location"] == whose["back"]
            assert agent.get("/v1/programs").status_code == 403
            shown = person.get(whose["back"]).text
            assert "suspended" in shown
            assert "olga" in shown
            assert "page-stopped" in person.get("/agents").text
        finally:
            send_form(person, "/suspensions/end", **whose)
        assert agent.get("/v1/programs").status_code == 200
        send_form(person, "/rights", **whose, right="decide", given="true")
        [known] = items(agent, "/v1/agents")
        assert known["decides"]
        send_form(person, "/rights", **whose, right="decide", given="false")
        assert (
            send_form(
                person, "/suspensions/end", tenant=ACME, agent="page-stopped", back="//evil.example"
            ).headers["location"]
            == "/agents"
        )


def test_tokens_that_are_over_are_folded_and_counted(api: ApiScene) -> None:
    for _ in range(2):
        api.token("page-tokens")
    api.revoke("page-tokens")
    api.token("page-tokens", ttl_s=-60.0)
    good = [api.token("page-tokens") for _ in range(TOKENS_SHOWN + 2)]
    with logged_in(api, api.operator) as person, api.client(good[0]) as agent:
        shown = person.get("/agents/acme/page-tokens").text
        first, older, over = shown.split("<details><summary>")[-3:]
        first = first.partition("<h2>Tokens</h2>")[2]
        assert first.count("for ever") == TOKENS_SHOWN
        assert "acme/the operator" not in first
        assert older.startswith("2 older ones that are good<")
        assert older.count("for ever") == 2
        assert over.startswith("3 that are over<")
        assert (over.count(", revoked"), over.count(", expired")) == (2, 1)
        assert "revoked" not in first + older
        listed = person.get("/tokens?agent=page-tokens&state=over").text
        assert (listed.count(", revoked"), listed.count("for ever")) == (2, 0)
        assert person.get("/tokens?state=nonsense").status_code == 400
        told = items(agent, "/v1/tokens", state="over")
        assert sorted(one["revoked_at"] is None for one in told) == [False, False, True]
    with logged_in(api, api.foreigner) as person:
        assert "page-tokens" not in person.get("/tokens?state=over").text


def test_a_quota_is_set_and_taken_away(api: ApiScene) -> None:
    whose = {"module": "tool", "tenant": ACME, "agent": "page-bounded"}
    with logged_in(api, api.operator) as person:
        assert send_form(person, "/quotas", **whose, max_queued="7").status_code == 303
        assert ">acme/page-bounded</a>" in person.get("/quotas").text
        assert send_form(person, "/quotas", **whose, max_queued="-7").status_code == 400
        assert send_form(person, "/quotas/remove", **whose).status_code == 303
        assert "page-bounded" not in person.get("/quotas").text


def test_the_policy_is_changed_while_it_runs(api: ApiScene) -> None:
    with api.client(api.operator) as client, logged_in(api, api.operator) as person:
        before = client.get("/v1/policy").json()["tool"]
        try:
            form = {"module": "tool", "name": "priority", "quantum_s": "0.25"}
            answer = send_form(person, "/policy", **form, quantum_tokens="")
            assert (answer.status_code, answer.headers["location"]) == (303, "/policy?changed=tool")
            assert "The policy of tool is changed." in person.get("/policy?changed=tool").text
            after = client.get("/v1/policy").json()["tool"]
            assert (after["name"], after["quantum_s"]) == ("priority", 0.25)
            assert after["quantum_tokens"] == before["quantum_tokens"]
            shown = " ".join(person.get("/policy").text.split())
            assert 'value="0.25"' in shown
            assert "may last 1 ms to 1 day, and take 1 token or more, without a limit." in shown
            assert send_form(person, "/policy", module="tool", quantum_s="0").status_code == 400
        finally:
            send_form(
                person,
                "/policy",
                module="tool",
                name=before["name"],
                quantum_s=before["quantum_s"],
            )


def test_the_audit_log_is_shown_and_verified(api: ApiScene) -> None:
    with logged_in(api, api.operator) as person:
        answer = send_form(person, "/audit/verify")
        assert answer.status_code == 200, answer.text
        assert "as they were written" in answer.text
