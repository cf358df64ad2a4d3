"""Generation options from the SDK to a worker and back; the page about them, run as it stands."""

import asyncio
import json
import math
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_sdk import AsyncAgent, InvalidSyscall, Tool, UnsupportedOption
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import running_worker

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to-generate.md"
LIMIT_S = 50
ADD = Tool(
    "add",
    parameters={
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    },
)


@pytest.fixture
async def kernel(redis_url: str) -> AsyncIterator[str]:
    core = SimulatedCore(SimulatedCoreConfig(end_probability=0.0))
    async with running_worker(redis_url, "llm", await llm_module(core)):
        yield redis_url


async def test_every_kind_of_answer(kernel: str) -> None:
    async with AsyncAgent("clerk", url=kernel) as me:
        several = await me.llm.chat("Hi", n=3, temperature=1.0, seed=5, max_tokens=8)
        assert len({choice.text for choice in several.choices}) == 3

        beams = await me.llm.chat("Hi", beam_width=3, n=2, max_tokens=6, logprobs=2)
        scores = [choice.score or 0.0 for choice in beams.choices]
        assert scores == sorted(scores, reverse=True)
        assert [len(token.top) for token in beams.logprobs] == [2] * 6

        called = await me.llm.chat("Hi", tools=[ADD], tool_choice="required", max_tokens=64)
        [call] = called.tool_calls
        assert called.finish_reason == "tool_calls"
        assert 0 <= json.loads(call.arguments)["n"] <= 9

        matched = await me.llm.chat("Hi", format={"type": "regex", "pattern": "yes|no"})
        assert matched.text in {"yes", "no"}


async def test_texts_become_vectors_of_length_one(kernel: str) -> None:
    async with AsyncAgent("clerk", url=kernel) as me:
        result = await me.llm.embed(["one", "two", "one"])

    first, second, third = result.vectors
    assert first == third != second
    assert math.isclose(sum(number**2 for number in first), 1.0, rel_tol=1e-6)
    assert result.usage.prompt_tokens == 9


async def test_what_cannot_be_kept_is_told_to_the_agent(kernel: str) -> None:
    async with AsyncAgent("clerk", url=kernel) as me:
        with pytest.raises(UnsupportedOption) as unsupported:
            await me.llm.chat("Hi", lora="poet")
        assert unsupported.value.field == "body.lora"
        with pytest.raises(InvalidSyscall) as wrong:
            await me.llm.chat("Hi", format={"type": "regex", "pattern": "("})
        assert wrong.value.field == "body.format.pattern"
        bad = Tool("bad", parameters={"type": "object", "properties": {"x": {"pattern": "("}}})
        with pytest.raises(InvalidSyscall) as tools:
            await me.llm.chat("Hi", tools=[bad], tool_choice="required")
        assert tools.value.field == "body.tools"


async def run_program(url: str, *command: str) -> str:
    folders = ":".join(str(ROOT / name) for name in ("broker", "workers", "sdk"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": folders, "AIOS_REDIS_URL": url}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LIMIT_S):
        out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode()


async def test_the_example_runs(kernel: str) -> None:
    lines = (await run_program(kernel, str(ROOT / "examples" / "forms.py"))).splitlines()

    assert [line.split(":")[0] for line in lines] == ["city", "call", "answers", "beams"]
    assert lines[2:] == ["answers: 3", "beams: 1"]


async def test_the_page_runs(kernel: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    lines = [f"        {line}" for block in blocks for line in block.splitlines()]
    program = tmp_path / "page.py"
    program.write_text(
        "\n".join(
            (
                "import asyncio",
                "from aios_sdk import AsyncAgent",
                "async def main():",
                "    async with AsyncAgent('reader') as me:",
                *lines,
                "asyncio.run(main())",
            )
        )
    )

    assert await run_program(kernel, str(program)) == ""
