"""An agent of the kernel as an A2A agent, met by the protocol's own client."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from a2a.client import A2ACardResolver, A2AClientError, ClientConfig, ClientFactory
from a2a.types import (
    CancelTaskRequest,
    ContentTypeNotSupportedError,
    GetExtendedAgentCardRequest,
    InternalError,
    ListTasksRequest,
    Message,
    Part,
    PushNotificationNotSupportedError,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    SubscribeToTaskRequest,
    TaskNotCancelableError,
    TaskNotFoundError,
    TaskPushNotificationConfig,
    TaskState,
    UnsupportedOperationError,
)
from google.protobuf.json_format import MessageToDict, ParseDict

from aios_broker.contract.names import Owner
from aios_broker.redis.connection import Connection
from aios_kernel_api.a2a import listing
from aios_kernel_api.kernel import Found, Kernel
from tests.a2a_client import (
    ALL,
    NOTE,
    asked,
    brief,
    chat,
    heard,
    made,
    message,
    speaking,
    state_of,
    states,
    streamed_text,
    task_of,
    to_the_end,
)
from tests.api_scene import ACME, GLOBEX, ApiScene, bearer, serving
from tests.integration.test_api_syscalls import echo
from tests.waiting import wait_until_async

# Who answers.


async def test_the_card_is_public_and_names_no_agent(api: ApiScene) -> None:
    async with api.async_client(None) as http:
        card = await A2ACardResolver(http, api.url).get_agent_card()
        answer = await http.get("/.well-known/agent-card.json")
        known = {"if-none-match": answer.headers["etag"]}
        again = await http.get("/.well-known/agent-card.json", headers=known)

    [reached] = card.supported_interfaces
    assert (reached.url, reached.protocol_binding) == (f"{api.url}/a2a", "JSONRPC")
    assert reached.protocol_version == "1.0"
    assert card.capabilities.streaming
    assert not card.capabilities.push_notifications
    assert {skill.id for skill in card.skills} == {"chat", "syscall"}
    assert card.security_schemes["token"].http_auth_security_scheme.scheme == "Bearer"
    assert "max-age" in answer.headers["cache-control"]
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]


async def test_an_agent_has_a_card_and_an_address_of_its_own(api: ApiScene) -> None:
    async with api.async_client(api.agent) as http:
        path = "/a2a/agents/ada/.well-known/agent-card.json"
        card = await A2ACardResolver(http, api.url, path).get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http)).create(card)
        told = await heard(client, {"type": "access.whoami"})
        extended = await client.get_extended_agent_card(GetExtendedAgentCardRequest())

    assert card.name == "ada"
    assert extended == card
    assert told[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
    [result] = [each.artifact_update.artifact for each in told if each.HasField("artifact_update")]
    assert MessageToDict(result.parts[0].data)["agent"] == "ada"


@pytest.mark.parametrize("who", ["colleague", "foreigner", "operator"])
async def test_an_agents_address_is_for_its_own_token(api: ApiScene, who: str) -> None:
    async with api.async_client(getattr(api, who)) as http:
        card = await http.get("/a2a/agents/ada/.well-known/agent-card.json")
        call = await http.post("/a2a/agents/ada", json={})

    assert (card.status_code, call.status_code) == (404, 404)
    assert call.json()["error"]["data"][0]["reason"] == "UNKNOWN_AGENT"


# What is asked, and made.


async def test_a_chat_is_streamed_and_kept(api: ApiScene) -> None:
    async with brief(api) as served, speaking(served, api.agent) as client:
        told = await heard(client, "Tell a story.")
        task = await task_of(client, told[0].task.id)

    assert states(told) == ["SUBMITTED", "WORKING", "COMPLETED"]
    assert streamed_text(told) == made(task)["answer"] != ""
    assert made(task)["result"]["model"]
    assert told[-1].status_update.status.timestamp.seconds
    assert {told[0].task.context_id, told[-1].status_update.context_id} == {task.context_id}


async def test_who_does_not_stream_gets_the_task_at_its_end(api: ApiScene) -> None:
    async with speaking(api, api.agent, streaming=False) as client:
        [told] = await heard(client, chat(max_tokens=3))

    assert state_of(told.task) == "COMPLETED"
    assert made(told.task)["answer"]
    assert made(told.task)["result"]["usage"]["output_tokens"] == 3


async def test_messages_of_one_context_are_one_conversation(api: ApiScene) -> None:
    token = api.token()
    async with brief(api) as served, speaking(served, token, streaming=False) as client:
        [first] = await heard(client, "My name is Ann.")
        context = first.task.context_id
        [second] = await heard(client, "What is my name?", context_id=context)
        [other] = await heard(client, "What is my name?")

    read = [made(each.task)["result"]["usage"]["prompt_tokens"] for each in (first, second, other)]
    assert second.task.context_id == context != other.task.context_id
    assert read[1] > read[2] + 6, "the first turn and its answer are not before the second"


async def test_a_message_that_is_sent_again_is_the_same_task(api: ApiScene) -> None:
    async with speaking(api, api.agent, streaming=False) as client:
        [first] = await heard(client, NOTE, message_id="once")
        [again] = await heard(client, NOTE, message_id="once")
        with pytest.raises(A2AClientError, match="another"):
            await heard(client, {**NOTE, "content": "another"}, message_id="once")

    assert not again.task.status.HasField("timestamp"), "when it ended is not known any more"
    first.task.status.ClearField("timestamp")
    assert first == again


async def test_what_was_sent_again_at_its_end_is_told_as_it_stands(api: ApiScene) -> None:
    async with speaking(api, api.agent, streaming=False) as client:
        [first] = await heard(client, NOTE, message_id="once more")
        quick = SendMessageConfiguration(return_immediately=True)
        [again] = await heard(client, NOTE, quick, message_id="once more")

    assert (first.task.id, state_of(again.task)) == (again.task.id, "COMPLETED")


async def test_each_of_many_tasks_is_answered_once(api: ApiScene) -> None:
    """Two hundred notes, each sent twice at the same time: two hundred notes are kept."""
    texts = [f"note {number}" for number in range(200)]
    async with speaking(api, api.token(), streaming=False) as client:
        told = await asyncio.gather(
            *(
                heard(client, {"type": "memory.add", "content": text}, message_id=text)
                for text in texts
                for _ in range(2)
            )
        )
        [kept] = await heard(client, {"type": "memory.stat"})

    tasks = [each.task for [each] in told]
    assert {state_of(task) for task in tasks} == {"COMPLETED"}
    assert [task.id for task in tasks[::2]] == [task.id for task in tasks[1::2]]
    assert len({task.id for task in tasks}) == len(texts)
    block = made(kept.task)["result"]
    assert block["resident_notes"] + block["swapped_notes"] == len(texts)


async def test_a_stream_that_was_left_is_taken_up_again(api: ApiScene) -> None:
    async with speaking(api, api.agent) as client:
        request = SendMessageRequest(message=message(chat(max_tokens=200, stream=True)))
        async with aclosing(client.send_message(request)) as told:  # type: ignore[type-var]
            begun = [await anext(told), await anext(told), await anext(told)]
        task_id = begun[0].task.id
        rest = [each async for each in client.subscribe(SubscribeToTaskRequest(id=task_id))]
        task = await task_of(client, task_id)
        with pytest.raises(UnsupportedOperationError, match="has ended"):
            await anext(client.subscribe(SubscribeToTaskRequest(id=task_id)))

    assert rest[0].HasField("task")
    assert states(rest)[-1] == "COMPLETED"
    assert streamed_text(rest) == made(task)["answer"]


async def test_a_stream_of_an_api_that_stops_goes_on_at_another(api: ApiScene) -> None:
    token = api.token()
    async with brief(api) as first, speaking(first, token) as client:
        request = SendMessageRequest(message=message(chat(max_tokens=200, stream=True)))
        stream = client.send_message(request)
        told = [await anext(stream), await anext(stream), await anext(stream)]
        first.server.should_exit = True
        with pytest.raises(InternalError, match="or SubscribeToTask"):
            told += [each async for each in stream]
    async with brief(api) as second, speaking(second, token) as client:
        rest = [each async for each in client.subscribe(SubscribeToTaskRequest(id=told[0].task.id))]
        task = await task_of(client, told[0].task.id)

    assert states(rest)[-1] == "COMPLETED"
    assert streamed_text(rest) == made(task)["answer"]


async def test_what_fails_says_why(api: ApiScene) -> None:
    async with speaking(api, api.agent) as client:
        told = await heard(client, {"type": "storage.read", "path": "nowhere.txt"})

    status = told[-1].status_update.status
    assert states(told)[-1] == "FAILED"
    assert "nowhere.txt" in status.message.parts[0].text
    assert MessageToDict(status.message.parts[1].data)["code"] == "not-found"


# Tasks.


async def test_a_context_of_the_same_name_is_each_tenants_own(api: ApiScene) -> None:
    async with brief(api) as served:
        read = []
        for token, words in (
            (api.token("twin", ACME), "My name is Ann, and I come from a small town by the sea."),
            (api.token("twin", GLOBEX), "What is my name?"),
            (api.token(), "What is my name?"),
        ):
            async with speaking(served, token, streaming=False) as client:
                [told] = await heard(client, words, context_id="room")
            read.append(made(told.task)["result"]["usage"]["prompt_tokens"])

    assert read[1] == read[2], "another tenant's turn is before this one"


async def test_another_tenants_task_is_unknown(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.foreigner) as stranger:
        task = await asked(client)
        with pytest.raises(TaskNotFoundError):
            await task_of(stranger, task.id)
        with pytest.raises(TaskNotFoundError):
            await stranger.cancel_task(CancelTaskRequest(id=task.id))
        with pytest.raises(TaskNotFoundError):
            await heard(stranger, "approve", task_id=task.id)
        with pytest.raises(TaskNotFoundError):
            await to_the_end(stranger, task.id)
        assert task.id not in {one.id for one in (await stranger.list_tasks(ALL)).tasks}
        assert task.id in {one.id for one in (await client.list_tasks(ALL)).tasks}
        await client.cancel_task(CancelTaskRequest(id=task.id))


async def test_a_task_is_cancelled_once(api: ApiScene) -> None:
    async with speaking(api, api.agent, streaming=False) as client:
        quick = SendMessageConfiguration(return_immediately=True)
        [told] = await heard(client, chat(max_tokens=4_000), quick)
        cancelled = await client.cancel_task(CancelTaskRequest(id=told.task.id))
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=told.task.id))

    assert state_of(told.task) in ("SUBMITTED", "WORKING")
    assert state_of(cancelled) == "CANCELED"


async def test_tasks_are_listed_newest_first_in_pages(api: ApiScene) -> None:
    asks = TaskState.TASK_STATE_INPUT_REQUIRED
    async with speaking(api, api.token()) as client:
        begun = [(await asked(client, context_id=f"room-{n % 2}")).id for n in range(3)]
        first = await client.list_tasks(ListTasksRequest(status=asks, page_size=2))
        rest = await client.list_tasks(
            ListTasksRequest(status=asks, page_size=2, page_token=first.next_page_token)
        )
        room = await client.list_tasks(ListTasksRequest(status=asks, context_id="room-0"))
        working = await client.list_tasks(ListTasksRequest(status=TaskState.TASK_STATE_WORKING))
        await client.cancel_task(CancelTaskRequest(id=first.tasks[-1].id))
        later = await client.list_tasks(
            ListTasksRequest(status=asks, page_size=2, page_token=first.next_page_token)
        )
        for task_id in (begun[0], begun[2]):
            await client.cancel_task(CancelTaskRequest(id=task_id))
        none = await client.list_tasks(ListTasksRequest(status=asks))

    assert [task.id for task in (*first.tasks, *rest.tasks)] == begun[::-1]
    assert (first.total_size, rest.next_page_token) == (3, "")
    assert [task.id for task in later.tasks] == [begun[0]], "its last task has ended meanwhile"
    assert [task.id for task in room.tasks] == [begun[2], begun[0]]
    assert not working.tasks
    assert not none.tasks


async def test_a_task_that_has_ended_is_listed_for_as_long_as_it_is_kept(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.token()) as stranger:
        last = (await heard(client, chat(max_tokens=3)))[-1]
        task_id = last.status_update.task_id or last.artifact_update.task_id or last.task.id
        done = ListTasksRequest(status=TaskState.TASK_STATE_COMPLETED)

        async def is_listed() -> bool:
            return [one.id for one in (await client.list_tasks(done)).tasks] == [task_id]

        await wait_until_async(is_listed)  # the ledger has it a moment later
        done.include_artifacts = True
        [whole] = (await client.list_tasks(done)).tasks
        [bare] = (await client.list_tasks(ListTasksRequest())).tasks
        others = await stranger.list_tasks(ListTasksRequest())

    assert whole.artifacts
    assert whole.context_id == bare.context_id
    assert not bare.artifacts
    assert not others.tasks


async def test_a_page_is_bounded_in_bytes_and_reads_no_reply_that_it_does_not_show(
    api: ApiScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_PAGE_BYTES", 500_000)
    read: list[str] = []
    find = Kernel.find_ended

    async def noting(self: Kernel, syscall_id: str, owner: Owner | None) -> Found:
        read.append(syscall_id)
        return await find(self, syscall_id, owner)

    token = api.token()
    async with (
        serving(api.redis_url, api.database_url) as served,
        speaking(served, token) as client,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token), timeout=30) as http,
    ):
        calls = [echo("x" * 200_000) for _ in range(5)]
        begun = (await http.post("/v1/syscalls", params={"wait_s": 20}, json=calls)).json()
        done = ListTasksRequest(status=TaskState.TASK_STATE_COMPLETED)

        async def are_listed() -> bool:
            return (await client.list_tasks(done)).total_size == len(begun)

        await wait_until_async(are_listed)  # the ledger has them a moment later
        monkeypatch.setattr(Kernel, "find_ended", noting)
        assert len((await client.list_tasks(done)).tasks) == 5
        assert read == []
        done.include_artifacts = True
        pages = [await client.list_tasks(done)]
        while pages[-1].next_page_token:
            done.page_token = pages[-1].next_page_token
            pages.append(await client.list_tasks(done))
    assert [len(page.tasks) for page in pages] == [2, 2, 1]
    assert len(read) == 5
    tasks = [task for page in pages for task in page.tasks]
    assert {task.id for task in tasks} == {each["id"] for each in begun}
    assert all(made(task)["result"]["text"] == "x" * 200_000 for task in tasks)


async def test_a_list_takes_one_step_of_redis_for_a_task_and_one_more_where_it_is_read(
    api: ApiScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []
    steps: Counter[str] = Counter()
    execute = Connection.execute

    async def noting(self: Connection, *arguments: Any, timeout_s: float | None = None) -> Any:  # noqa: ANN401
        said = " ".join(
            each.decode(errors="replace") if isinstance(each, bytes) else str(each)
            for each in arguments
        )
        steps.update(each for each in ids if each in said)
        return await execute(self, *arguments, timeout_s=timeout_s)

    token = api.token()
    async with (
        serving(api.redis_url, api.database_url) as served,
        speaking(served, token) as client,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token), timeout=30) as http,
    ):
        calls = [echo("x" * 1_000) for _ in range(6)]
        begun = (await http.post("/v1/syscalls", params={"wait_s": 20}, json=calls)).json()
        done = ListTasksRequest(status=TaskState.TASK_STATE_COMPLETED)

        async def are_listed() -> bool:
            return (await client.list_tasks(done)).total_size == len(begun)

        await wait_until_async(are_listed)  # the ledger has them a moment later
        ids += [each["id"] for each in begun]
        monkeypatch.setattr(Connection, "execute", noting)
        await client.list_tasks(done)
        assert set(steps.values()) == {1}
        steps.clear()
        done.include_artifacts = True
        assert len((await client.list_tasks(done)).tasks) == len(ids)
        assert set(steps.values()) == {2}
        assert len(steps) == len(ids)


async def test_an_operator_begins_no_task(api: ApiScene) -> None:
    async with speaking(api, api.operator) as person:
        with pytest.raises(A2AClientError, match="no agent's"):
            await heard(person, "Hello.")


# Bad input.


async def test_the_kernel_calls_nobody(api: ApiScene) -> None:
    push = TaskPushNotificationConfig(url="https://example.org/", task_id="f" * 32)
    async with speaking(api, api.agent) as client:
        with pytest.raises(PushNotificationNotSupportedError, match="calls nobody"):
            await client.create_task_push_notification_config(push)
        with pytest.raises(PushNotificationNotSupportedError):
            await heard(
                client, "Hello.", SendMessageConfiguration(task_push_notification_config=push)
            )


async def test_content_that_is_not_read_is_refused(api: ApiScene) -> None:
    async with speaking(api, api.agent) as client:
        for parts in (
            [Part(raw=b"x", media_type="image/png")],
            [Part(url="https://example.org/x.png")],
            [Part(text="Do this:"), ParseDict({"data": NOTE}, Part())],
        ):
            asking = Message(message_id=uuid.uuid4().hex, role=Role.ROLE_USER, parts=parts)
            with pytest.raises(ContentTypeNotSupportedError):
                async for _ in client.send_message(SendMessageRequest(message=asking)):
                    pass
        with pytest.raises(ContentTypeNotSupportedError):
            await heard(client, "Hello.", SendMessageConfiguration(accepted_output_modes=["a/b"]))
