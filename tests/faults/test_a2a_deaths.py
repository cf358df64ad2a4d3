"""A process of the kernel is killed while somebody hears a task by A2A."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from a2a.client import A2AClientError, Client
from a2a.types import GetTaskRequest, SendMessageRequest, StreamResponse, SubscribeToTaskRequest

from aios_broker.config import KernelConfig, environment
from aios_local.supervisor.kernel import EmbeddedKernel
from tests.a2a_client import chat, made, message, speaking, states, streamed_text
from tests.api_scene import ApiScene
from tests.waiting import wait_until_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TOKENS = 300  # 3 s of an answer
SETTINGS = {
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "100",
    "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiScene]:
    config = KernelConfig(
        state_dir=tmp_path_factory.mktemp("kernel"), llm_core="simulated", llm_slots=2
    )
    with EmbeddedKernel(config, inherited={**environment(), **SETTINGS}) as kernel:
        yield ApiScene(kernel, kernel.redis_url, kernel.database_url)


async def heard_again(client: Client, task_id: str) -> Sequence[StreamResponse]:
    """Subscribe until the end was heard; what a broken stream told is heard once more."""
    told: list[StreamResponse] = []

    async def to_the_end() -> bool:
        with suppress(A2AClientError):  # the API is not back yet
            heard = client.subscribe(SubscribeToTaskRequest(id=task_id))
            told[:] = [each async for each in heard]
        return bool(told)

    await wait_until_async(to_the_end, 60)
    return told


@pytest.mark.parametrize("victim", ["llm-1", "redis", "api"])
async def test_a_stream_goes_on_or_is_taken_up_again(scene: ApiScene, victim: str) -> None:
    async with speaking(scene, scene.token()) as client:
        asking = SendMessageRequest(message=message(chat(max_tokens=TOKENS, stream=True)))
        told: list[StreamResponse] = []
        with suppress(A2AClientError):  # the API that was asked is gone
            async for each in client.send_message(asking):
                told.append(each)
                if len(told) == 3:
                    killed = scene.kernel.kill(victim)
        scene.kernel.wait_running(victim, not_pid=killed)
        is_broken = states(told)[-1] != "COMPLETED"
        assert is_broken is (victim == "api")
        if is_broken:
            told = list(await heard_again(client, told[0].task.id))
        task = await client.get_task(GetTaskRequest(id=told[0].task.id))

    assert made(task)["result"]["usage"]["output_tokens"] == TOKENS
    assert streamed_text(told) == made(task)["answer"]
