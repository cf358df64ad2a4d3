"""What the API shows: each agent its own, an administrator its tenant's, an operator all."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api_scene import ACME, ApiScene

CHAT: dict[str, object] = {
    "type": "llm.chat",
    "messages": [{"role": "user", "content": "Tell a story."}],
    "max_tokens": 2,
}
ALL = {"limit": 1000}


def items(client: httpx.Client, path: str, **query: str | float) -> list[dict[str, Any]]:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def pages(client: httpx.Client, path: str, **query: str | float) -> Iterator[dict[str, Any]]:
    """Yield all items of a list, page by page."""
    after: dict[str, str | float] = {}
    for _ in range(100):
        answer = client.get(path, params={**query, **after})
        assert answer.status_code == 200, answer.text
        yield from answer.json()["items"]
        if answer.json()["next"] is None:
            return
        after = {"after": answer.json()["next"]}
    raise AssertionError("it never ends")


def ended(client: httpx.Client, body: dict[str, object], **fields: object) -> dict[str, Any]:
    answer = client.post("/v1/syscalls", params={"wait_s": 20}, json={"body": body, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def held(api: ApiScene) -> Iterator[str]:
    """The id of a syscall of ada's program `story` that does not end: nobody decides about it."""
    with api.client(api.agent) as client:
        syscall_id = str(waiting_approval(client, program="story")["syscall_id"])
        yield syscall_id
        client.post(f"/v1/syscalls/{syscall_id}/cancel")


@pytest.mark.parametrize(
    ("who", "sees"),
    [
        ("agent", True),
        ("administrator", True),
        ("operator", True),
        ("colleague", False),
        ("foreigner", False),
        ("foreign_administrator", False),
    ],
)
def test_what_has_not_ended_is_seen_by_whose_it_is(
    api: ApiScene,
    held: str,
    who: str,
    sees: bool,  # noqa: FBT001
) -> None:
    with api.client(getattr(api, who)) as client:
        found = [one["job_id"] for one in pages(client, "/v1/syscalls", module="memory")]
        programs = [one["program"] for one in pages(client, "/v1/programs", **ALL)]

    assert (held in found) is sees
    assert ("story" in programs) is sees


def test_syscalls_are_found_by_program_and_state(api: ApiScene, held: str) -> None:
    with api.client(api.agent) as client:
        mine = [one["job_id"] for one in pages(client, "/v1/syscalls", program="story")]
        others = [one["job_id"] for one in pages(client, "/v1/syscalls", program="other")]
        parked = [one["job_id"] for one in pages(client, "/v1/syscalls", state="parked")]
        queued = [one["job_id"] for one in pages(client, "/v1/syscalls", state="queued")]

    assert held in mine
    assert held in parked
    assert held not in [*others, *queued]


def test_an_operator_is_told_why_a_syscall_is_where_it_is(api: ApiScene, held: str) -> None:
    with api.client(api.operator) as client:
        answer = client.get(f"/v1/syscalls/{held}/why")
        assert answer.status_code == 200, answer.text
        assert answer.json()["rule"] == "parked"
        assert answer.json()["numbers"]["approval"]
        assert client.get(f"/v1/syscalls/{'f' * 32}/why").status_code == 404


def test_a_program_shows_what_it_used(api: ApiScene) -> None:
    with api.client(api.token()) as client:
        ended(client, CHAT, program="once")
        ended(client, CHAT, program="once")
        [found] = [one for one in items(client, "/v1/programs") if one["program"] == "once"]

    assert found["use"]["finished"] == 2
    assert (found["running"], found["waiting"]) == (0, 0)


def test_programs_come_in_pages(api: ApiScene) -> None:
    with api.client(api.token()) as client:
        for number in range(5):
            ended(client, CHAT, program=f"p{number}")
        found = [one["program"] for one in pages(client, "/v1/programs", limit=2)]

    assert found == [f"p{number}" for number in range(5)]


def test_an_operator_sees_queues_workers_and_cores(api: ApiScene) -> None:
    with api.client(api.operator) as client:
        queues = client.get("/v1/queues").json()
        assert {one["module"] for one in queues["items"]} == {
            "llm",
            "memory",
            "storage",
            "tool",
            "access",
        }
        assert queues["scheduler"] is not None
        assert {"llm", "tool"} <= {one["module"] for one in items(client, "/v1/workers")}
        [core] = items(client, "/v1/cores")
        assert (core["name"], core["served"], core["workers"]) == ("simulated", True, 1)


def test_an_agent_sees_which_cores_there_are_and_not_how_busy(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        [core] = items(client, "/v1/cores")

    assert core["name"] == "simulated"
    assert not {"waiting", "running", "workers", "slots"} & core.keys()


def test_usage_is_counted_and_kept(api: ApiScene) -> None:
    with api.client(api.token("counted")) as client:
        ended(client, CHAT, program="p")
        [counted] = [one for one in items(client, "/v1/usage") if one["module"] == "llm"]
        [kept] = [
            one
            for one in items(client, "/v1/usage", since=0, by="program")
            if one["module"] == "llm"
        ]

    assert counted["subject"]["agent"] == "counted"
    assert counted["use"]["finished"] == kept["use"]["finished"] == 1
    assert kept["subject"]["program"] == "p"


def test_an_administrator_sees_what_its_tenant_used(api: ApiScene) -> None:
    with api.client(api.token()) as client:
        ended(client, CHAT)
    with api.client(api.administrator) as client:
        lines = list(pages(client, "/v1/usage", by="tenant", **ALL))
    assert {one["subject"]["tenant"] for one in lines} == {ACME}


def test_agents_are_seen_by_scope(api: ApiScene) -> None:
    for each in (api.agent, api.colleague, api.administrator, api.foreigner):
        with api.client(each) as client:
            ended(client, {"type": "access.whoami"})
    with api.client(api.agent) as client:
        assert [(one["tenant"], one["name"]) for one in items(client, "/v1/agents")] == [
            (ACME, "ada")
        ]
    with api.client(api.administrator) as client:
        found = list(pages(client, "/v1/agents", limit=2))
        assert {one["tenant"] for one in found} == {ACME}
        assert {"ada", "bob", "boss"} <= {one["name"] for one in found}
        names = [one["name"] for one in found]
        assert len(names) == len(set(names))
    with api.client(api.operator) as client:
        assert {"acme", "globex"} <= {one["tenant"] for one in pages(client, "/v1/agents", **ALL)}


def test_the_policy_is_shown_and_changed_while_it_runs(api: ApiScene) -> None:
    with api.client(api.operator) as client:
        before = client.get("/v1/policy", params={"module": "tool"}).json()["tool"]
        try:
            answer = client.patch(
                "/v1/policy",
                params={"module": "tool"},
                json={"name": "priority", "quantum_s": 0.25},
            )
            assert answer.status_code == 200, answer.text
            after = client.get("/v1/policy").json()["tool"]
            assert (after["name"], after["quantum_s"]) == ("priority", 0.25)
            assert after["quantum_tokens"] == before["quantum_tokens"]
        finally:
            client.patch(
                "/v1/policy",
                params={"module": "tool"},
                json={"name": before["name"], "quantum_s": before["quantum_s"]},
            )
        wrong = client.patch("/v1/policy", json={"name": "nonsense"})
        assert (wrong.status_code, wrong.json()["field"]) == (400, "name")


def test_a_quota_is_set_shown_kept_and_taken_away(api: ApiScene) -> None:
    token = api.token("bounded")
    with api.client(api.operator) as operator, api.client(token) as agent:
        answer = operator.put(
            "/v1/quotas",
            json={"module": "tool", "tenant": ACME, "agent": "bounded", "max_queued": 0},
        )
        assert answer.status_code == 200, answer.text
        mine = [
            one["quota"]["max_queued"]
            for one in items(agent, "/v1/quotas")
            if one["quota"]["subject"]["agent"] == "bounded"
        ]
        assert mine == [0]
        with api.client(api.colleague) as other:
            subjects = [one["quota"]["subject"] for one in items(other, "/v1/quotas")]
            assert "bounded" not in [one["agent"] for one in subjects]
        refused = agent.post("/v1/syscalls", json={"body": {"type": "tool.echo"}})
        assert refused.status_code == 429
        where = {"module": "tool", "tenant": ACME, "agent": "bounded"}
        assert operator.delete("/v1/quotas", params=where).json() == {"changed": True}
        assert operator.delete("/v1/quotas", params=where).json() == {"changed": False}
        ended(agent, {"type": "tool.echo"})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_queued": 1}, "agent"),
        ({"agent": "operator:x", "max_queued": 1}, "agent"),
        ({"agent": "ada", "max_queued": -1}, "max_queued"),
        ({"agent": "ada", "budget_per_day": "much"}, "budget_per_day"),
        ({"agent": "ada", "budget_per_day": "2.50"}, "currency"),
        ({"agent": "ada", "nonsense": 1}, "nonsense"),
    ],
)
def test_a_quota_that_cannot_be_is_refused(
    api: ApiScene, body: dict[str, object], field: str
) -> None:
    with api.client(api.operator) as client:
        answer = client.put("/v1/quotas", json=body)

    assert (answer.status_code, answer.json()["field"]) == (400, field)


def waiting_approval(
    client: httpx.Client, body: dict[str, object] | None = None, **fields: object
) -> dict[str, Any]:
    """Have an agent ask for what a person decides; return the request."""
    if body is None:
        ended(client, {"type": "memory.add", "content": "a note"})
        body = {"type": "memory.clear"}
    taken = client.post("/v1/syscalls", json={"body": body, **fields})
    syscall_id = taken.json()["id"]
    for _ in range(200):
        found = [
            one
            for one in pages(client, "/v1/approvals", state="waiting", limit=100)
            if one["syscall_id"] == syscall_id
        ]
        if found:
            return found[0]
        client.get(f"/v1/syscalls/{syscall_id}/wait", params={"wait_s": 0.1})
    raise AssertionError("nobody was asked")


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_nobody_decides_about_what_was_cancelled(api: ApiScene, decision: str) -> None:
    with api.client(api.token()) as agent, api.client(api.operator) as operator:
        one = waiting_approval(agent)
        agent.post(f"/v1/syscalls/{one['syscall_id']}/cancel").raise_for_status()
        answer = operator.post(f"/v1/approvals/{one['id']}/{decision}", json={})
    told = answer.json()
    assert (answer.status_code, told["code"]) == (403, "approval-expired")
    assert "its syscall has ended" in told["detail"]


def test_an_operator_approves_and_it_runs(api: ApiScene) -> None:
    with api.client(api.token()) as agent, api.client(api.operator) as operator:
        one = waiting_approval(agent)
        shown = operator.get(f"/v1/approvals/{one['id']}")
        assert shown.json()["what"] == one["what"]
        answer = operator.post(f"/v1/approvals/{one['id']}/approve", json={})
        assert answer.status_code == 200, answer.text
        assert answer.json()["state"] in ("approved", "used")
        assert answer.json()["decided_by"] == "operator:olga"
        done = agent.get(f"/v1/syscalls/{one['syscall_id']}/wait", params={"wait_s": 20})
        assert done.json()["state"] == "finished"
        again = operator.post(f"/v1/approvals/{one['id']}/approve", json={})
        assert again.status_code == 412
        lines = [one["action"] for one in items(operator, "/v1/audit", limit=20)]
        assert "approval.approved" in lines


def test_an_operator_denies_and_its_caller_hears_why(api: ApiScene) -> None:
    with api.client(api.token()) as agent, api.client(api.operator) as operator:
        one = waiting_approval(agent)
        answer = operator.post(f"/v1/approvals/{one['id']}/deny", json={"reason": "not today"})
        assert answer.json()["state"] == "denied"
        done = agent.get(f"/v1/syscalls/{one['syscall_id']}/wait", params={"wait_s": 20}).json()
        assert done["error"]["code"] == "approval-denied"
        assert "not today" in done["error"]["message"]


def test_nobody_decides_what_it_asked_for(api: ApiScene) -> None:
    with api.client(api.token()) as agent:
        one = waiting_approval(agent)
        for path in ("approve", "deny"):
            answer = agent.post(f"/v1/approvals/{one['id']}/{path}", json={})
            assert answer.status_code == 403, answer.text
        assert agent.get(f"/v1/approvals/{one['id']}").json()["state"] == "waiting"


def test_an_edit_that_is_none_is_refused(api: ApiScene) -> None:
    with api.client(api.token()) as agent, api.client(api.operator) as operator:
        one = waiting_approval(agent)
        answer = operator.post(
            f"/v1/approvals/{one['id']}/approve", json={"arguments": {"nonsense": 1}}
        )
        assert (answer.status_code, answer.json()["field"]) == (400, "arguments")


def test_the_audit_log_is_seen_by_scope_and_verified(api: ApiScene) -> None:
    with api.client(api.token("audited")) as agent:
        waiting_approval(agent)
    with api.client(api.operator) as operator:
        verdict = operator.get("/v1/audit/verify")
        assert verdict.status_code == 200, verdict.text
        assert verdict.json()["broken_seq"] is None
        seen = [one["seq"] for one in pages(operator, "/v1/audit", limit=3)]
        assert seen == sorted(seen, reverse=True)
        assert len(seen) == len(set(seen))
    with api.client(api.colleague) as other:
        assert {one["actor"] for one in pages(other, "/v1/audit")} <= {"bob"}
    with api.client(api.foreign_administrator) as other:
        assert {one["tenant"] for one in pages(other, "/v1/audit")} <= {"globex"}


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/v1/programs", {"limit": 0}, "query.limit"),
        ("/v1/programs", {"limit": "many"}, "query.limit"),
        ("/v1/programs", {"color": "red"}, "query.color"),
        ("/v1/syscalls", {"module": "nonsense"}, "query.module"),
        ("/v1/syscalls", {"after": "nonsense"}, "after"),
        ("/v1/agents", {"after": "nonsense"}, "after"),
        ("/v1/audit", {"after": "-1"}, "after"),
        ("/v1/usage", {"since": "yesterday"}, "query.since"),
        ("/v1/approvals", {"state": "asleep"}, "query.state"),
    ],
)
def test_a_query_that_is_wrong_is_named(
    api: ApiScene, path: str, query: dict[str, object], field: str
) -> None:
    with api.client(api.agent) as client:
        answer = client.get(path, params=query)  # type: ignore[arg-type]

    assert (answer.status_code, answer.json()["field"]) == (400, field)


@pytest.mark.parametrize("name", ["program", "agent", "after"])
def test_a_nul_is_refused_and_reaches_no_server(api: ApiScene, name: str) -> None:
    with api.client(api.administrator) as client:
        answer = client.get(
            "/v1/agents?agent=%00" if name == "agent" else f"/v1/syscalls?{name}=%00"
        )

    assert answer.status_code in (200, 400, 404), answer.text


def test_the_reference_is_a_page_and_a_description(api: ApiScene) -> None:
    with api.client(None) as client:
        page = client.get("/reference")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert client.get("/reference.css").headers["content-type"].startswith("text/css")
        assert client.get("/openapi.json").json()["openapi"] == "3.1.0"
