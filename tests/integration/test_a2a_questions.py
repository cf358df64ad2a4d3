"""What a task of A2A asks of a person, who may answer, and what comes of it."""

from __future__ import annotations

import asyncio

import pytest
from a2a.client import A2AClientError
from a2a.types import (
    CancelTaskRequest,
    InvalidParamsError,
    SubscribeToTaskRequest,
    TaskNotCancelableError,
    UnsupportedOperationError,
)
from google.protobuf.json_format import MessageToDict

from aios_kernel_api.a2a.following import LOOK_S
from tests.a2a_client import (
    asked,
    heard,
    made,
    speaking,
    state_of,
    states,
    task_of,
    to_the_end,
)
from tests.api_scene import ACME, ApiScene


async def test_a_task_asks_for_input_and_gives_its_result(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.operator) as person:
        task = await asked(client)
        question = MessageToDict(task.status.message.parts[1].data)
        shown = await task_of(person, task.id)
        answered = await heard(person, "approve", task_id=task.id)
        done = await task_of(client, task.id)
        with pytest.raises(UnsupportedOperationError, match="ended"):
            await heard(person, "approve", task_id=task.id)

    assert question["kind"] == "memory.clear"
    assert "approve" in task.status.message.parts[0].text
    assert shown.status.message == task.status.message
    assert states(answered)[-1] == "COMPLETED"
    assert state_of(done) == "COMPLETED"
    assert made(done)["result"]


async def test_whoever_subscribes_hears_the_decision(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.operator) as person:
        task = await asked(client)
        told = client.subscribe(SubscribeToTaskRequest(id=task.id))
        first = await anext(told)
        following = asyncio.ensure_future(anext(told))
        too_early, _ = await asyncio.wait([following], timeout=3 * LOOK_S)
        await heard(person, "deny: not today", task_id=task.id)
        rest = [await following, *[each async for each in told]]

    assert not too_early
    assert state_of(first.task) == "INPUT_REQUIRED"
    assert states(rest)[-1] == "REJECTED"
    assert "not today" in rest[-1].status_update.status.message.parts[0].text


async def test_a_person_may_let_something_else_run(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.operator) as person:
        for name in ("one", "two"):
            await heard(client, {"type": "storage.write", "path": f"{name}.txt", "content": name})
        told = await heard(client, {"type": "storage.delete", "path": "one.txt"})
        edit: dict[str, object] = {"decision": "approve", "arguments": {"path": "two.txt"}}
        task_id = told[0].task.id
        while states(told)[-1] == "INPUT_REQUIRED":  # it reaches for something else: asked anew
            told = await heard(person, edit, task_id=task_id)
        kept = [
            states(await heard(client, {"type": "storage.read", "path": f"{name}.txt"}))[-1]
            for name in ("one", "two")
        ]

    assert kept == ["COMPLETED", "FAILED"]


async def test_nobody_answers_its_own_question(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client:
        task = await asked(client)
        for words in ("approve", "deny"):
            with pytest.raises(A2AClientError, match="itself"):
                await heard(client, words, task_id=task.id)
        assert state_of(await task_of(client, task.id)) == "INPUT_REQUIRED"
        await client.cancel_task(CancelTaskRequest(id=task.id))


async def test_an_agent_that_decides_answers_and_does_not_see_the_result(api: ApiScene) -> None:
    token = api.token("a2a-judge")
    may = {"tenant": ACME, "agent": "a2a-judge", "right": "decide", "given": True}
    with api.client(api.operator) as operator:
        operator.put("/v1/rights", json=may).raise_for_status()
    async with speaking(api, api.token()) as client, speaking(api, token) as decider:
        task = await asked(client)
        shown = await task_of(decider, task.id)
        with pytest.raises(TaskNotCancelableError):
            await decider.cancel_task(CancelTaskRequest(id=task.id))
        [answered] = await heard(decider, "approve", task_id=task.id)
        done = await to_the_end(client, task.id)
        seen = await task_of(decider, task.id)

    assert state_of(shown) == "INPUT_REQUIRED"
    assert state_of(answered.task) == "WORKING"
    assert made(done)["result"]
    assert not seen.artifacts


UNCLEAR = [
    "yes",
    "approve all but the first",
    "approved",
    "",
    "approve\u200b",  # a space that is not seen
    "\u202eapprove",
    "\u0430pprove",  # the first letter is a Cyrillic one
]


@pytest.mark.parametrize("words", UNCLEAR)
async def test_only_a_clear_answer_is_one(api: ApiScene, words: str) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.operator) as person:
        task = await asked(client)
        with pytest.raises(InvalidParamsError, match="decides nothing"):
            await heard(person, words, task_id=task.id)
        assert state_of(await task_of(client, task.id)) == "INPUT_REQUIRED"
        await client.cancel_task(CancelTaskRequest(id=task.id))


async def test_an_answer_of_another_context_is_refused(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.operator) as person:
        task = await asked(client)
        with pytest.raises(InvalidParamsError, match="another context"):
            await heard(person, "approve", task_id=task.id, context_id="elsewhere")
        await client.cancel_task(CancelTaskRequest(id=task.id))


async def test_a_question_that_is_taken_back_can_not_be_answered(api: ApiScene) -> None:
    async with speaking(api, api.token()) as client, speaking(api, api.operator) as person:
        task = await asked(client)
        told = client.subscribe(SubscribeToTaskRequest(id=task.id))
        await anext(told)
        cancelled = await client.cancel_task(CancelTaskRequest(id=task.id))
        rest = [each async for each in told]
        with pytest.raises(UnsupportedOperationError, match="ended"):
            await heard(person, "approve", task_id=task.id)
        kept = await heard(client, {"type": "memory.list"})

    assert state_of(cancelled) == "CANCELED"
    assert states(rest) == ["CANCELED"]
    [notes] = [each.artifact_update.artifact for each in kept if each.HasField("artifact_update")]
    assert MessageToDict(notes.parts[0].data)["notes"]
