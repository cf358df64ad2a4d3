"""The protocol's own client of the A2A door, and what tests read of what it hears."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.types import (
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import UnsupportedOperationError
from google.protobuf.json_format import MessageToDict, ParseDict

from tests.api_scene import TIMEOUT_S, ApiScene, ServedApi, bearer, serving

DELETES: dict[str, object] = {"type": "memory.clear"}
NOTE: dict[str, object] = {"type": "memory.add", "content": "a note"}
ALL = ListTasksRequest(page_size=100)


def chat(text: str = "Tell a story.", **options: object) -> dict[str, object]:
    return {"type": "llm.chat", "messages": [{"role": "user", "content": text}], **options}


@asynccontextmanager
async def speaking(
    api: ApiScene | ServedApi, token: str, *, streaming: bool = True
) -> AsyncIterator[Client]:
    """Open the protocol's client, from the card at the well-known place on."""
    async with httpx.AsyncClient(headers=bearer(token), timeout=TIMEOUT_S) as http:
        card = await A2ACardResolver(http, api.url).get_agent_card()
        yield ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)


def brief(api: ApiScene) -> AbstractAsyncContextManager[ServedApi]:
    """Serve the kernel by an API whose chats are short where nothing is said of their length."""
    return serving(api.redis_url, api.database_url, api_default_max_tokens=6)


def message(said: str | dict[str, object], **fields: Any) -> Message:  # noqa: ANN401
    part = Part(text=said) if isinstance(said, str) else ParseDict({"data": said}, Part())
    fields.setdefault("message_id", uuid.uuid4().hex)
    return Message(role=Role.ROLE_USER, parts=[part], **fields)


async def heard(
    client: Client,
    said: str | dict[str, object],
    configuration: SendMessageConfiguration | None = None,
    **fields: Any,  # noqa: ANN401
) -> list[StreamResponse]:
    """Send a message; return all that comes of it."""
    request = SendMessageRequest(message=message(said, **fields), configuration=configuration)
    return [each async for each in client.send_message(request)]


def states(told: Sequence[StreamResponse]) -> list[str]:
    found = [
        (each.task if each.HasField("task") else each.status_update).status.state
        for each in told
        if not each.HasField("artifact_update")
    ]
    return [TaskState.Name(state).removeprefix("TASK_STATE_") for state in found]


def state_of(task: Task) -> str:
    return str(TaskState.Name(task.status.state)).removeprefix("TASK_STATE_")


def streamed_text(told: Sequence[StreamResponse]) -> str:
    """Return the answer's text as a client puts it together."""
    pieces: list[str] = []
    for each in told:
        update = each.artifact_update
        if each.HasField("artifact_update") and update.artifact.artifact_id == "answer":
            assert update.append is bool(pieces), "a piece is appended to nothing, or begins anew"
            pieces += [part.text for part in update.artifact.parts]
    return "".join(pieces)


def made(task: Task) -> dict[str, Any]:
    """Return what a task has made, by artifact: text, or data."""
    found: dict[str, Any] = {}
    for artifact in task.artifacts:
        [part] = artifact.parts
        found[artifact.artifact_id] = part.text or MessageToDict(part.data)
    return found


async def task_of(client: Client, task_id: str) -> Task:
    return await client.get_task(GetTaskRequest(id=task_id))


async def asked(client: Client, **fields: Any) -> Task:  # noqa: ANN401
    """Have a task ask for something; return it."""
    await heard(client, NOTE)
    told = await heard(client, DELETES, **fields)
    assert states(told)[-1] == "INPUT_REQUIRED", states(told)
    return await task_of(client, told[0].task.id)


async def to_the_end(client: Client, task_id: str) -> Task:
    """Follow a task until it has ended; return it."""
    try:
        async for _ in client.subscribe(SubscribeToTaskRequest(id=task_id)):
            pass
    except UnsupportedOperationError as error:
        if "has ended" not in str(error):  # it had before anybody could follow it
            raise
    return await task_of(client, task_id)
