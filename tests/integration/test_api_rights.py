"""Tokens, groups, grants, rights and suspensions by HTTP: by scope, and as the kernel has them."""

from collections.abc import Iterator
from typing import Any

import httpx

from tests.api_scene import ACME, GLOBEX, ApiScene
from tests.integration.test_api_views import ended, items, pages


def names(found: Iterator[dict[str, Any]], *fields: str) -> set[tuple[str, ...]]:
    return {tuple(one[field] for field in fields) for one in found}


def test_tokens_are_seen_by_scope_and_never_whole(api: ApiScene) -> None:
    mine, boss, foreign = api.agent, api.administrator, api.foreigner
    with api.client(mine) as client:
        found = list(pages(client, "/v1/tokens", limit=1))
        assert {(one["tenant"], one["agent"]) for one in found} == {(ACME, "ada")}
        assert all(mine != one["id"] and mine not in str(one) for one in found)
        assert client.get("/v1/tokens", params={"agent": "bob"}).status_code == 404
    with api.client(boss) as client:
        assert {("acme", "ada"), ("acme", "boss")} <= names(
            pages(client, "/v1/tokens", limit=2), "tenant", "agent"
        )
        assert client.get("/v1/tokens", params={"tenant": GLOBEX}).status_code == 404
    with api.client(api.operator) as client:
        assert (GLOBEX, "eve") in names(pages(client, "/v1/tokens", limit=7), "tenant", "agent")
        wrong = client.get("/v1/tokens", params={"after": "nonsense"})
        assert (wrong.status_code, wrong.json()["field"]) == (400, "after")
    assert foreign


def test_groups_and_grants_are_seen_by_whom_they_concern(api: ApiScene) -> None:
    giver, taker, other = (api.token(name) for name in ("giver", "taker", "bystander"))
    with api.client(taker) as client:
        ended(client, {"type": "access.whoami"})  # it is known from now on
    with api.client(giver) as client:
        ended(client, {"type": "access.group_create", "group": "readers/a"})
        ended(client, {"type": "storage.write", "path": "shared.txt", "content": "hello"})
        for to in ({"agent": "taker"}, {"group": "readers/a"}):
            ended(
                client,
                {
                    "type": "access.grant",
                    "object": {"kind": "file", "name": "/shared.txt"},
                    "verbs": ["read"],
                    **to,
                },
            )
        given = items(client, "/v1/grants")
        assert {one["to"] for one in given} == {"agent:taker", "group:readers/a"}
        assert {one["name"] for one in given} == {"/shared.txt"}
        [group] = [one for one in items(client, "/v1/groups") if one["name"] == "readers/a"]
        assert group == {"tenant": ACME, "name": "readers/a", "members": {"giver": "admin"}}
    with api.client(taker) as client:
        assert [one["owner"] for one in items(client, "/v1/grants")] == ["giver"]
        assert items(client, "/v1/groups", agent="taker") == []
    with api.client(other) as client:
        assert items(client, "/v1/grants") == []
    with api.client(api.foreign_administrator) as client:
        assert "readers/a" not in {one["name"] for one in pages(client, "/v1/groups")}
        assert client.get("/v1/groups", params={"tenant": ACME}).status_code == 404
    with api.client(api.operator) as client:
        found = list(pages(client, "/v1/grants", tenant=ACME, agent="giver", limit=1))
        assert len(found) == 2
        assert names(pages(client, "/v1/groups", limit=1), "tenant", "name") >= {
            (ACME, "readers/a")
        }


def test_a_right_is_given_and_taken(api: ApiScene) -> None:
    with api.client(api.operator) as client:
        for given in (True, False):
            answer = client.put(
                "/v1/rights",
                json={"tenant": ACME, "agent": "trusted", "right": "decide", "given": given},
            )
            assert answer.status_code == 200, answer.text
            assert (answer.json()["decides"], answer.json()["administrator"]) == (given, False)
        assert items(client, "/v1/audit", limit=1)[0]["action"] == "access.forbid"


def test_an_agent_is_suspended_and_goes_on(api: ApiScene) -> None:
    with api.client(api.operator) as operator, api.client(api.token("stopped")) as agent:
        ended(agent, {"type": "tool.echo"})
        where = {"tenant": ACME, "agent": "stopped"}
        try:
            answer = operator.put("/v1/suspensions", json=where)
            assert answer.json() == {"ended": 0}, answer.text
            assert {**where, "by": "olga"} in items(operator, "/v1/suspensions")
            refused = agent.get("/v1/programs")
            assert (refused.status_code, refused.json()["code"]) == (403, "agent-suspended")
        finally:
            gone = operator.delete("/v1/suspensions", params=where)
        assert gone.json() == {"changed": True}
        assert operator.delete("/v1/suspensions", params=where).json() == {"changed": False}
        ended(agent, {"type": "tool.echo"})


def test_what_is_the_operators_is_nobody_elses(api: ApiScene) -> None:
    where = {"tenant": ACME, "agent": "bob"}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/v1/rights", {"json": {**where, "right": "decide", "given": True}}),
        ("GET", "/v1/suspensions", {}),
        ("PUT", "/v1/suspensions", {"json": where}),
        ("DELETE", "/v1/suspensions", {"params": where}),
    ]
    with api.client(api.administrator) as client:
        for method, path, options in asked:
            answer: httpx.Response = client.request(method, path, **options)
            assert (answer.status_code, answer.json()["code"]) == (403, "access-denied"), path
