"""A whole kernel on a real SGLang server: preempted through the queue, answers stay the same."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from aios_broker.contract.llm import RegexFormat, Tool
from aios_broker.contract.reply import Reply
from aios_workers.llm.core import GenerationRequest, Sampling
from tests.caller import Caller, WorkerProcess, chat, chat_result
from tests.exactness import generate
from tests.scheduler_process import SchedulerProcess
from tests.sglang_servers import own_server, started
from tests.tiny_llama import write_model

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]

MAX_TOKENS = 160
FORM = "[a-z]{60,90}"
NUMBER = {
    "type": "object",
    "properties": {"n": {"enum": [4711, 4712]}},
    "required": ["n"],
    "additionalProperties": False,
}
ANSWER_LIMIT_S = 240.0


async def test_answers_of_preempted_generations_are_those_of_the_bare_engine(
    redis_url: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "tiny-llama", seed=7)
    texts = [f"Agent {number} asks for a long answer." for number in range(6)]
    bodies = [chat(text, max_tokens=MAX_TOKENS) for text in texts]
    held = [
        chat("In a form.", max_tokens=MAX_TOKENS, format=RegexFormat(FORM)),
        chat(
            "By a call.",
            max_tokens=MAX_TOKENS,
            tool_choice="required",
            tools=(Tool("add", "Adds.", NUMBER), Tool("take", "Takes.", NUMBER)),
        ),
    ]
    caller = Caller(redis_url)
    async with started(own_server(model)) as core:
        assert core.server is not None
        expected = [
            await generate(
                core,
                GenerationRequest(
                    f"{number:032x}", core.render(body.messages), MAX_TOKENS, Sampling()
                ),
            )
            for number, body in enumerate(bodies)
        ]
        worker = {
            "aios_llm_core": "sglang",
            "aios_sglang_url": core.server.url,
            "aios_llm_slots": 2,
            "aios_sglang_name": "tiny",
        }
        with (
            SchedulerProcess(redis_url, tmp_path / "scheduler.log", aios_quantum_tokens=16),
            WorkerProcess(redis_url, "llm", **worker),
        ):
            ids = await caller.submit(*bodies, *held, deadline_s=ANSWER_LIMIT_S)
            async with asyncio.timeout(ANSWER_LIMIT_S):
                while not all(each in caller.replies for each in ids):
                    try:
                        await caller.hear_all(ids)
                    except TimeoutError:
                        continue  # it waits for less long than this takes
    replies = [caller.replies[each][0] for each in ids]
    await caller.aclose()
    check_held(replies[len(bodies) :])
    del replies[len(bodies) :]
    results = [chat_result(reply) for reply in replies]
    assert [result.output_ids for result in results] == [answer.ids for answer in expected]
    assert {result.model for result in results} == {"tiny"}
    assert sum(reply.timings.suspensions for reply in replies) >= len(bodies)
    assert len({reply.id for reply in replies}) == len(bodies)


def check_held(replies: list[Reply]) -> None:
    """A form begins anew where a generation is cut: such a one is not."""
    formed, called = (chat_result(reply) for reply in replies)
    assert re.fullmatch(FORM, formed.text)
    assert (formed.finish_reason, called.finish_reason) == ("stop", "tool_calls")
    assert len(formed.output_ids) >= 60  # of a quantum of 16
    assert [reply.timings.suspensions for reply in replies] == [0, 0]
    [call] = called.tool_calls
    assert call.name in ("add", "take")
    assert json.loads(call.arguments)["n"] in (4711, 4712)
