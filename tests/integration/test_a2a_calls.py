"""Calls of the A2A door that no client of the protocol makes: each is told what is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api_scene import ApiScene

SENT: dict[str, Any] = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "Hello."}]}


def rpc(method: str = "SendMessage", **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def sending(**fields: object) -> dict[str, object]:
    return rpc(message={**SENT, **fields})


CASES: list[tuple[object, int, str]] = [
    (b"{", -32700, ""),
    (b"\xff", -32700, ""),
    (b"[" * 1_000, -32602, "body"),
    ([rpc()], -32600, ""),
    ({**rpc(), "id": None}, -32600, ""),
    ({**rpc(), "id": True}, -32600, ""),
    ({**rpc(), "id": "x" * 257}, -32600, ""),
    ({**rpc(), "jsonrpc": "1.0"}, -32600, ""),
    ({**rpc(), "params": [1]}, -32600, ""),
    (rpc("message/send"), -32601, ""),
    (rpc(), -32602, "message"),
    (sending(role="ROLE_AGENT"), -32602, "message.role"),
    (sending(role="user"), -32602, "message.role"),
    (sending(parts=[]), -32602, "message.parts"),
    (sending(parts=[{}]), -32602, "message.parts[0]"),
    (sending(parts=[{"text": "x", "data": 1}]), -32602, "message.parts[0]"),
    (sending(parts=[{"data": {"type": "memory.dream"}}]), -32602, "message.parts[0].data.type"),
    (sending(parts=[{"data": {"type": "memory.add"}}]), -32602, "message.parts[0].data.content"),
    (sending(parts=[{"raw": "eA=="}]), -32005, "message.parts[0]"),
    (sending(parts=[{"url": "file:///etc/passwd"}]), -32005, "message.parts[0]"),
    (sending(parts=[{"text": "x" * 4_200_000}]), -32602, "message.parts"),
    (sending(parts="Hello."), -32602, "message.parts"),
    (sending(parts=[{"data": "memory.add"}]), -32602, "message.parts[0].data"),
    (sending(parts=[{"text": "x\0"}]), -32602, "params.message.parts.0.text"),
    (sending(contextId="two words"), -32602, "message.contextId"),
    (sending(contextId="x" * 121), -32602, "message.contextId"),
    (sending(messageId=""), -32602, "message.messageId"),
    (sending(taskId="no-such-task"), -32001, ""),
    (rpc("GetTask", id="f" * 32), -32001, ""),
    (rpc("GetTask", id=["f"]), -32602, "id"),
    (rpc("GetTask", id="F" * 32), -32001, ""),
    (rpc("GetTask", id="f" * 32 + "\n"), -32001, ""),
    (rpc("GetTask", id="f\r\nX-Evil: 1"), -32001, ""),
    (rpc("GetTask\r\nX-Evil: 1"), -32601, ""),
    (sending(contextId="c\u202e"), -32602, "message.contextId"),
    (rpc("CancelTask", id="f" * 32), -32001, ""),
    (rpc("SubscribeToTask", id="f" * 32), -32001, ""),
    (rpc("ListTasks", pageSize=0), -32602, "pageSize"),
    (rpc("ListTasks", pageSize=101), -32602, "pageSize"),
    (rpc("ListTasks", pageSize="many"), -32602, "pageSize"),
    (rpc("ListTasks", pageToken="f" * 32), -32602, "pageToken"),
    (rpc("GetTask"), -32602, "id"),
    (rpc("GetTask", id="f" * 32, historyLength=-1), -32602, "historyLength"),
    (rpc("ListTasks", status="DONE"), -32602, "status"),
    (rpc("ListTasks", statusTimestampAfter="2026-01-01T00:00:00Z"), -32602, "statusTimestampAfter"),
    (rpc("ListTaskPushNotificationConfigs", taskId="x"), -32003, ""),
]


@pytest.mark.parametrize(("body", "code", "field"), CASES)
def test_bad_input_is_told_by_its_field(api: ApiScene, body: object, code: int, field: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with api.client(api.agent) as client:
        answer = client.post("/a2a", content=content, headers={"a2a-version": "1.0"})
    error = answer.json()["error"]

    assert (answer.status_code, error["code"]) == (200, code), error
    assert "x-evil" not in answer.headers
    assert error["data"][0]["metadata"].get("field", "") == field, error
    assert error["message"]


def test_what_a_task_says_makes_no_event_of_its_own(api: ApiScene) -> None:
    said = 'a\n\ndata: {"evil": 1}\r\n\r\nevent: x\rdata: y\u2028\u0085\x1b[2J\u202e'
    asked = sending(messageId="events", parts=[{"data": {"type": "tool.echo", "text": said}}])
    asked["method"] = "SendStreamingMessage"
    with api.client(api.token()) as client:
        answer = client.post("/a2a", json=asked, headers={"a2a-version": "1.0"})
    lines = [line for line in answer.content.split(b"\n") if line and not line.startswith(b":")]
    told = [json.loads(line.removeprefix(b"data: ")) for line in lines]

    assert all(each["id"] == 7 and "result" in each for each in told)
    assert not {b"\r", b"\x1b"} & {bytes([one]) for one in answer.content}
    [made] = [
        part["data"]["text"]
        for each in told
        for part in each["result"].get("artifactUpdate", {}).get("artifact", {}).get("parts", [])
    ]
    assert made == said


@pytest.mark.parametrize("version", ["", "0.3", "2.0", "1.00"])
def test_another_version_of_the_protocol_is_refused(api: ApiScene, version: str) -> None:
    with api.client(api.agent) as client:
        answer = client.post("/a2a", json=sending(), headers={"a2a-version": version})
        asked = client.post("/a2a?A2A-Version=1.0", json=rpc("GetExtendedAgentCard"))

    assert answer.json()["error"]["code"] == -32009
    assert answer.json()["id"] == 7
    assert asked.json()["result"]["name"] == "ada"


def test_a_bad_token_is_refused_before_anything_is_read(api: ApiScene) -> None:
    with httpx.Client(base_url=api.url) as client:
        answer = client.post("/a2a", content=b"{", headers={"authorization": "Bearer aios_no"})

    assert answer.status_code == 401
    assert answer.json()["error"]["data"][0]["reason"] == "UNAUTHENTICATED"


def test_fields_that_are_null_are_left_out(api: ApiScene) -> None:
    note = {"type": "memory.add", "content": "x", "ttl_s": None}
    sent = {**SENT, "messageId": "nulls", "parts": [{"data": note, "url": None}], "taskId": None}
    asked = {**rpc(message=sent, configuration=None), "extra": None}
    with api.client(api.agent) as client:
        answer = client.post("/a2a", json=asked, headers={"a2a-version": "1.0"})

    assert answer.json()["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED", answer.text
