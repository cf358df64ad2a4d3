"""Each route, tried without a token, with a bad one, a too small scope, another tenant's ids.

It goes through the application's own table of routes. What has an id in its path stands in the
table below; a route that lacks there fails.
"""

import re
from collections.abc import Callable, Mapping

import httpx
import pytest

from aios_kernel_api.app import DOORS
from aios_kernel_api.rest.description import operations
from tests.api_scene import ApiScene

NO_ID = "f" * 32
GUARDED = sorted(
    f"{method} {route.path}"
    for door in DOORS
    if not door.rules.is_public and not door.rules.is_page
    for route in door.routes
    for method in route.methods or ()
)
PUBLIC = sorted(
    f"{method} {route.path}"
    for door in DOORS
    if door.rules.is_public and not door.rules.is_page
    for route in door.routes
    for method in route.methods or ()
)
OPERATIONS = {one.name: one for one in operations()}
OPERATORS = sorted(name for name, one in OPERATIONS.items() if one.scope == "operator")
UNAUTHENTICATED = 401


def asked(client: httpx.Client, name: str) -> httpx.Response:
    """Ask a route for something, whatever it is."""
    method, _, path = name.partition(" ")
    concrete = re.sub(r"{\w+(:\w+)?}", NO_ID, path)
    return client.request(method, concrete)


@pytest.mark.parametrize("name", GUARDED)
def test_it_asks_for_a_token(api: ApiScene, name: str) -> None:
    with api.client(None) as client:
        answer = asked(client, name)

    assert answer.status_code == UNAUTHENTICATED, answer.text
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("kind", ["expired", "revoked", "unknown"])
def test_a_token_that_is_not_good_opens_nothing(api: ApiScene, kind: str) -> None:
    token = "aios_nobodys" if kind == "unknown" else getattr(api, kind)
    with api.client(token) as client:
        statuses = {name: asked(client, name).status_code for name in GUARDED}

    assert set(statuses.values()) == {UNAUTHENTICATED}, statuses


def test_what_is_public_is_only_what_should_be() -> None:
    assert {name for name in PUBLIC if not name.startswith("HEAD ")} == {
        "GET /healthz",
        "GET /readyz",
        "GET /openapi.json",
        "GET /reference",
        "GET /reference.css",
        "GET /v1/links/{link}",
        "GET /.well-known/agent-card.json",
    }


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("scope", ["agent", "administrator"])
def test_what_is_the_operators_is_refused_to_others(api: ApiScene, name: str, scope: str) -> None:
    with api.client(getattr(api, scope)) as client:
        answer = asked(client, name)

    assert answer.status_code == 403, answer.text
    assert answer.json()["code"] == "access-denied"


def a_syscall(api: ApiScene) -> str:
    with api.client(api.agent) as client:
        answer = client.post(
            "/v1/syscalls", params={"wait_s": 20}, json={"body": {"type": "tool.echo"}}
        )
    found: str = answer.json()["id"]
    return found


def an_approval(api: ApiScene) -> str:
    body = {"type": "memory.clear"}
    with api.client(api.agent) as client:
        client.post(
            "/v1/syscalls",
            params={"wait_s": 20},
            json={"body": {"type": "memory.add", "content": "note"}},
        )
        asked_for = client.post("/v1/syscalls", json={"body": body}).json()["id"]
        for _ in range(200):
            found = client.get("/v1/approvals", params={"limit": 1000}).json()["items"]
            mine = [one["id"] for one in found if one["syscall_id"] == asked_for]
            if mine:
                return str(mine[0])
            client.get(f"/v1/syscalls/{asked_for}/wait", params={"wait_s": 0.1})
    raise AssertionError("nobody was asked")


def a_file(api: ApiScene) -> str:
    with api.client(api.agent) as client:
        assert client.put("/v1/files/doors/mine.txt", content=b"mine").status_code in (200, 201)
    return "doors/mine.txt"


def nothing(_api: ApiScene) -> str:
    return NO_ID


def a_response(api: ApiScene) -> str:
    asked_for = {"model": "any", "input": "Hello.", "max_output_tokens": 4}
    with api.client(api.agent) as client:
        answer = client.post("/v1/responses", json=asked_for)
    found: str = answer.json()["id"]
    return found


def an_agent(_api: ApiScene) -> str:
    return "ada"


IDS: Mapping[str, Callable[[ApiScene], str]] = {
    "GET /v1/syscalls/{id}": a_syscall,
    "GET /v1/syscalls/{id}/wait": a_syscall,
    "POST /v1/syscalls/{id}/cancel": a_syscall,
    "GET /v1/syscalls/{id}/events": a_syscall,
    "GET /v1/approvals/{id}": an_approval,
    "POST /v1/approvals/{id}/approve": an_approval,
    "POST /v1/approvals/{id}/deny": an_approval,
    "GET /v1/files/{path:path}": a_file,
    "GET /v1/responses/{id}": a_response,
    "DELETE /v1/responses/{id}": a_response,
    "POST /v1/responses/{id}/cancel": a_response,
    "GET /v1/responses/{id}/input_items": a_response,
    "POST /a2a/agents/{agent:path}": an_agent,
    "GET /a2a/agents/{agent:path}/.well-known/agent-card.json": an_agent,
}
# What is written at a path is the caller's; models are everybody's.
OWN_PLACES = frozenset(["PUT /v1/files/{path:path}", "GET /v1/models/{id:path}"])
WITH_IDS = {
    name
    for name, one in OPERATIONS.items()
    if "{" in one.path and one.scope is not None and one.scope != "operator"
}


def test_each_route_with_an_id_is_in_the_table() -> None:
    assert IDS.keys() | OWN_PLACES == WITH_IDS


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("who", ["foreigner", "foreign_administrator"])
def test_another_tenants_ids_are_unknown(api: ApiScene, name: str, who: str) -> None:
    method, _, path = name.partition(" ")
    concrete = re.sub(r"{\w+(:\w+)?}", IDS[name](api), path)
    body: dict[str, str] | None = {} if method == "POST" and "approvals" in path else None
    with api.client(getattr(api, who)) as client:
        answer = client.request(method, concrete, json=body)

    assert answer.status_code == 404, answer.text


@pytest.mark.parametrize(
    "path", ["/v1/programs", "/v1/usage", "/v1/agents", "/v1/audit", "/v1/syscalls"]
)
@pytest.mark.parametrize("who", ["agent", "administrator"])
def test_another_tenant_cannot_be_asked_about(api: ApiScene, path: str, who: str) -> None:
    with api.client(getattr(api, who)) as client:
        answer = client.get(path, params={"tenant": "globex"})

    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown-agent"


@pytest.mark.parametrize("path", ["/v1/programs", "/v1/usage", "/v1/agents", "/v1/audit"])
def test_an_agent_cannot_ask_about_another(api: ApiScene, path: str) -> None:
    with api.client(api.agent) as client:
        assert client.get(path, params={"agent": "bob"}).status_code == 404
