"""Syscalls by HTTP: submitted, waited for, looked at, cancelled; and everybody's are their own."""

import asyncio
from typing import Any, get_args

import httpx
import msgspec
import pytest

from aios_broker.contract.syscall import Body
from tests.api_scene import GLOBEX, ApiScene
from tests.waiting import wait_until

CHAT = {
    "type": "llm.chat",
    "messages": [{"role": "user", "content": "Tell a story."}],
    "max_tokens": 8,
}
SLOW = {**CHAT, "max_tokens": 3_000}  # 15 s
ID = "0" * 32
SAMPLES: dict[str, object] = {
    "a": 1,
    "agent": "somebody",
    "approval": ID,
    "changes": [{"path": "/a", "content": "text"}],
    "code": "1 + 1",
    "content": "text",
    "group": "readers",
    "instruction": "make a file",
    "link": "a-secret-of-a-link",
    "messages": [{"role": "user", "content": "hello"}],
    "note": ID,
    "object": {"kind": "block"},
    "operation": "delete",
    "path": "/a",
    "query": "what",
    "records": [{"content": "text"}],
    "role": "user",
    "rule": "ask",
    "session": ID,
    "source": "/srv",
    "syscall_id": ID,
    "texts": ["one"],
    "text": "one",
    "to": "/b",
    "tool": "local/add",
    "ttl_s": 60.0,
    "verb": "read",
    "verbs": ["read"],
    "version": 1,
}
PROBLEM = "application/problem+json"


def echo(text: str = "hello", **more: object) -> dict[str, object]:
    return {"body": {"type": "tool.echo", "text": text}, **more}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found: dict[str, Any] = answer.json()
    assert (found["code"], found["status"]) == (code, status)
    return found


def test_a_syscall_is_answered(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        answer = client.post("/v1/syscalls", params={"wait_s": 20}, json=echo())
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["state"], found["result"]) == (
            "finished",
            {"type": "tool.echo", "text": "hello"},
        )
        assert answer.headers["location"] == f"/v1/syscalls/{found['id']}"
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["cache-control"] == "no-store"
        assert client.get(answer.headers["location"]).json()["result"] == found["result"]


def test_one_that_is_not_waited_for_is_found_by_its_id(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        taken = client.post("/v1/syscalls", json={"body": CHAT, "program": "p1"})
        assert taken.status_code == 202
        assert (taken.json()["state"], taken.json()["module"]) == ("queued", "llm")
        answer = client.get(f"/v1/syscalls/{taken.json()['id']}/wait")
        assert answer.status_code == 200
        assert answer.json()["result"]["usage"]["output_tokens"] == 8


def test_a_list_is_answered_in_its_order_each_for_itself(api: ApiScene) -> None:
    asked = [
        echo("a"),
        {"body": {**CHAT, "core": "nobody"}},
        {"body": CHAT},
        echo("b", key="b"),
        echo("c", key="b"),
    ]
    with api.client(api.token()) as client:
        answer = client.post("/v1/syscalls", params={"wait_s": 20}, json=asked)
    assert answer.status_code == 200, answer.text
    a, nobody, chat, b, conflict = answer.json()
    assert (a["result"]["text"], b["result"]["text"]) == ("a", "b")
    assert (nobody["state"], nobody["error"]["code"]) == ("refused", "unknown-core")
    assert chat["result"]["type"] == "llm.chat"
    assert (conflict["state"], conflict["error"]["code"]) == ("refused", "key-conflict")


def test_a_key_is_one_syscall_and_another_body_is_a_conflict(api: ApiScene) -> None:
    with api.client(api.token()) as client:

        def sent(text: str, **headers: str) -> httpx.Response:
            return client.post(
                "/v1/syscalls", params={"wait_s": 20}, json=echo(text), headers=headers
            )

        first = sent("once", **{"idempotency-key": "step 1"})
        again = sent("once", **{"idempotency-key": "step 1"})
        assert first.json() == again.json()
        other = sent("twice", **{"idempotency-key": "step 1"})
        assert problem(other, 409, "key-conflict")["syscall_id"] == first.json()["id"]
    with api.client(api.token(tenant=GLOBEX)) as client:
        assert sent("once", **{"idempotency-key": "step 1"}).json()["id"] != first.json()["id"]


def test_who_does_not_wait_is_shown_what_has_ended_already(api: ApiScene) -> None:
    with api.client(api.token()) as client:
        for body, state in (
            ({"type": "tool.echo", "text": "x"}, "finished"),
            ({"type": "storage.read", "path": "/nowhere"}, "failed"),
        ):
            asked = {"body": body, "key": state}
            client.post("/v1/syscalls", params={"wait_s": 20}, json=asked)
            again = client.post("/v1/syscalls", json=asked)
            assert (again.status_code, again.json()["state"]) == (200, state)
            assert again.json() == client.get(f"/v1/syscalls/{again.json()['id']}").json()


async def test_two_clients_with_one_key_and_other_bodies_at_once(api: ApiScene) -> None:
    async with api.async_client(api.token()) as client:
        headers = {"idempotency-key": "race"}
        answers = await asyncio.gather(
            *(
                client.post(
                    "/v1/syscalls",
                    params={"wait_s": 20},
                    json={"body": {**CHAT, "seed": n % 2}},
                    headers=headers,
                )
                for n in range(10)
            )
        )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 5 + [409] * 5
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 200}) == 1


def test_a_failure_has_the_status_of_its_code(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        body = {"type": "storage.read", "path": "/nowhere"}
        answer = client.post("/v1/syscalls", params={"wait_s": 20}, json={"body": body})
        found = problem(answer, 404, "not-found")
        assert found["syscall_id"]
        shown = client.get(f"/v1/syscalls/{found['syscall_id']}").json()
        assert (shown["state"], shown["error"]["code"]) == ("failed", "not-found")


def test_cancel_ends_it_once(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        syscall_id = client.post("/v1/syscalls", json={"body": SLOW}).json()["id"]
        cancelled = client.post(f"/v1/syscalls/{syscall_id}/cancel")
        assert cancelled.status_code == 200
        assert (cancelled.json()["state"], cancelled.json()["error"]["code"]) == (
            "cancelled",
            "cancelled",
        )
        assert client.post(f"/v1/syscalls/{syscall_id}/cancel").json() == cancelled.json()


def test_a_wait_that_is_over_leaves_the_syscall_alone(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        syscall_id = client.post("/v1/syscalls", json={"body": SLOW}).json()["id"]
        answer = client.get(f"/v1/syscalls/{syscall_id}/wait", params={"wait_s": 0.2})
        assert answer.status_code == 202
        assert answer.json()["state"] in ("queued", "running")
        assert client.post(f"/v1/syscalls/{syscall_id}/cancel").json()["state"] == "cancelled"


def test_who_waits_hears_that_it_waits_for_a_person(api: ApiScene) -> None:
    with api.client(api.token()) as client:
        add = {"type": "memory.add", "content": "a note"}
        client.post("/v1/syscalls", params={"wait_s": 20}, json={"body": add}).raise_for_status()
        clear = {"body": {"type": "memory.clear"}, "key": "clears"}
        client.post("/v1/syscalls", json=clear).raise_for_status()

        def is_parked() -> dict[str, Any]:
            taken = client.post("/v1/syscalls", params={"wait_s": 0.05}, json=clear)
            assert taken.status_code == 202, taken.text
            found: dict[str, Any] = taken.json()
            return found if found["state"] == "parked" else {}

        parked = wait_until(is_parked)
        assert parked is not None
        listed = client.post("/v1/syscalls", params={"wait_s": 0.05}, json=[clear, echo()])
        at = f"/v1/syscalls/{parked['id']}"
        shown = client.get(at)
        waited = client.get(at, params={"wait_s": 0.05})
        refused = client.get(at, params={"wait": 1})
        client.post(f"{at}/cancel").raise_for_status()
        ended = client.get(at, params={"wait_s": 20})

    assert parked["module"] == "memory"
    assert [one["state"] for one in listed.json()] == ["parked", "finished"]
    assert (shown.status_code, shown.json()["state"]) == (200, "parked")
    assert (waited.status_code, waited.json()["state"]) == (202, "parked")
    assert problem(refused, 400, "invalid-request")["field"] == "query.wait"
    assert (ended.status_code, ended.json()["state"]) == (200, "cancelled")


@pytest.mark.parametrize(
    ("path", "key", "text"),
    [
        ("/v1/syscalls", "text", '{"body": {"type": "tool.echo", "text": "a", "te\\u0078t": "b"}}'),
        ("/v1/syscalls", "key", '[{"body": {"type": "tool.echo"}, "key": "a", "key": "b"}]'),
        (f"/v1/approvals/{ID}/deny", "reason", '{"reason": "a", "reason": "b"}'),
        ("/v1/chat/completions", "model", '{"model": "a", "model": "b", "messages": []}'),
        ("/v1/completions", "prompt", '{"model": "a", "prompt": "p", "prompt": "q"}'),
        ("/v1/embeddings", "input", '{"model": "a", "input": "p", "input": "q"}'),
        ("/v1/messages", "system", '{"system": "a", "system": "b", "messages": []}'),
        ("/v1/responses", "role", '{"model": "a", "input": [{"role": "user", "role": "system"}]}'),
        ("/v1/session/cancel", "ids", '{"module": "llm", "ids": [], "ids": []}'),
        ("/a2a", "id", '{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "GetTask"}'),
        ("/a2a", "id", '{"jsonrpc": "2.0", "id": 1, "method": "X", "params": {"id": 1, "id": 2}}'),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_its_name(
    api: ApiScene, path: str, key: str, text: str
) -> None:
    with api.client(api.agent) as client:
        headers = {"content-type": "application/json", "a2a-version": "1.0"}
        answer = client.post(path, content=text, headers=headers)
    assert answer.status_code == (200 if path == "/a2a" else 400), answer.text
    assert f"an object has the key '{key}' twice" in answer.text


def test_anothers_syscall_is_unknown_but_to_an_operator(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        syscall_id = client.post("/v1/syscalls", json={"body": SLOW}).json()["id"]
    for token in (api.foreigner, api.colleague, api.foreign_administrator):
        with api.client(token) as client:
            for method, path in (("GET", ""), ("GET", "/wait"), ("POST", "/cancel")):
                answer = client.request(method, f"/v1/syscalls/{syscall_id}{path}")
                problem(answer, 404, "unknown-syscall")
    with api.client(api.operator) as client:
        assert client.get(f"/v1/syscalls/{syscall_id}").status_code == 200
        assert client.post(f"/v1/syscalls/{syscall_id}/cancel").json()["state"] == "cancelled"


def test_an_operator_is_no_agent(api: ApiScene) -> None:
    with api.client(api.operator) as client:
        problem(client.post("/v1/syscalls", json=echo()), 403, "access-denied")


@pytest.mark.parametrize(
    "name", ["none", "unknown", "expired", "revoked", "basic", "two", "two ways"]
)
def test_without_a_good_token_nothing_is_done(api: ApiScene, name: str) -> None:
    headers: list[tuple[str, str]] = {
        "none": [],
        "unknown": [("authorization", "Bearer aios_nobody")],
        "expired": [("authorization", f"Bearer {api.expired}")],
        "revoked": [("authorization", f"Bearer {api.revoked}")],
        "basic": [("authorization", "Basic YWRhOmFkYQ==")],
        "two": [
            ("authorization", f"Bearer {api.agent}"),
            ("authorization", f"Bearer {api.foreigner}"),
        ],
        "two ways": [("authorization", f"Bearer {api.agent}"), ("x-api-key", api.foreigner)],
    }[name]
    with api.client(None) as client:
        answer = client.post("/v1/syscalls", json=echo(), headers=httpx.Headers(headers))
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_token_may_come_as_anthropic_sends_it(api: ApiScene) -> None:
    with api.client(None) as client:
        for headers in (
            {"x-api-key": api.agent},
            {"x-api-key": api.agent, "authorization": f"Bearer {api.agent}"},
            {"x-api-key": "sk-ant-0", "authorization": f"Bearer {api.agent}"},
        ):
            assert client.post("/v1/syscalls", json=echo(), headers=headers).is_success


def smallest(kind: type[msgspec.Struct]) -> dict[str, object]:
    """Return a body of this kind with what it has to have, and nothing else."""
    given = {name: SAMPLES[name] for name in required(kind)}
    return {"type": kind.__struct_config__.tag, **given}


def required(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind) if field.required]


@pytest.mark.parametrize("kind", get_args(Body), ids=lambda kind: str(kind.__struct_config__.tag))
def test_every_body_of_the_contract_is_taken(api: ApiScene, kind: type[msgspec.Struct]) -> None:
    with api.client(api.agent) as client:
        answer = client.post("/v1/syscalls", json={"body": smallest(kind)})
        assert answer.is_success, answer.text  # 202, or 200 where it has ended before it was told
        client.post(f"/v1/syscalls/{answer.json()['id']}/cancel")
