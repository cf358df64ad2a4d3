"""The SDK against the real workers, and the examples as a reader would run them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from aios_sdk import Agent, Cancelled, ContextTooLong, DeadlineExceeded, Reply
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_TIMEOUT_S = 50
START_TIMEOUT_S = 30.0


def environment(redis_url: str, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(str(ROOT / part) for part in ("broker", "workers", "sdk")),
        "AIOS_REDIS_URL": redis_url,
        **more,
    }


@contextmanager
def process(module: str, environ: dict[str, str], log_path: Path) -> Iterator[None]:
    """Run one program of the kernel until the block is left."""
    command = [sys.executable, "-m", *module.split()]
    with log_path.open("ab") as log:
        child = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


@pytest.fixture
def kernel(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """A kernel with the simulated core: scheduler, one llm worker, one tool worker."""
    log_path = tmp_path / "kernel.log"
    simulated = environment(
        redis_url,
        AIOS_LLM_CORE="simulated",
        AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S="400",
        AIOS_SIMULATED_CORE_END_PROBABILITY="0",
    )
    with ExitStack() as stack:
        for program in ("aios_broker.scheduler", "aios_workers llm", "aios_workers tool"):
            stack.enter_context(process(program, simulated, log_path))
        with redis.Redis.from_url(redis_url) as client:
            try:
                wait_until(lambda: client.scard("rq:workers") == 2, START_TIMEOUT_S)
            except TimeoutError as error:
                raise AssertionError(log_path.read_text()) from error
        yield redis_url


def run_example(name: str, redis_url: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env=environment(redis_url),
        capture_output=True,
        text=True,
        timeout=EXAMPLE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_examples_run(kernel: str) -> None:
    *_, last = run_example("hello.py", kernel)
    assert last.startswith("24 tokens of ")
    *text, last = run_example("stream.py", kernel)
    assert "".join(text)
    assert last == "[64 tokens, length]"
    lines = run_example("many_agents.py", kernel, "--agents", "6")
    assert [line.split(",")[0] for line in lines] == [
        f"agent-{number}: {8 if number % 2 == 0 else 96} tokens" for number in range(6)
    ]


def test_answers_of_the_real_workers(kernel: str) -> None:
    with Agent("writer", url=kernel) as me:
        echoes = me.tool.echo.map([f"{n}" for n in range(200)])
        assert [echo.text for echo in echoes] == [f"{n}" for n in range(200)]

        answer = me.llm.chat("hi", max_tokens=16, return_ids=True)
        assert answer.usage.output_tokens == len(answer.output_ids) == 16
        assert me.llm.chat("hi", max_tokens=16).text == answer.text

        stream = me.llm.chat.stream("hi", max_tokens=16)
        pieces = list(stream)
        assert len(pieces) > 1
        assert "".join(pieces) == stream.result.text == answer.text

        with pytest.raises(ContextTooLong):
            me.llm.chat("hi", max_tokens=100_000)


def test_a_long_generation_is_watched_and_cancelled(kernel: str) -> None:
    with Agent("writer", url=kernel) as me:
        call = me.llm.chat.start("a long one", max_tokens=1500, stream=True)
        first = next(call.events())
        assert not isinstance(first, Reply)
        assert call.status().state == "running"
        assert call.cancel()
        with pytest.raises(Cancelled):
            call.result(timeout_s=10)
        # and the slot is free again
        assert me.with_options(timeout_s=20).llm.chat("hi", max_tokens=4).text


def test_the_kernel_ends_what_outlives_its_deadline(kernel: str) -> None:
    with Agent("writer", url=kernel) as me:
        hasty = me.with_options(deadline_s=0.5, timeout_s=20)
        with pytest.raises(DeadlineExceeded):
            hasty.llm.chat("a long one", max_tokens=1500)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_programs_in_the_pages_run(kernel: str, tmp_path: Path) -> None:
    for page in ("sdk/README.md", "README.md", "docs/quickstart.md"):
        blocks = python_blocks((ROOT / page).read_text(encoding="utf-8"))
        assert blocks, page
        for block in blocks:
            program = tmp_path / "block.py"
            program.write_text(block, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, str(program)],
                env=environment(kernel),
                capture_output=True,
                text=True,
                timeout=EXAMPLE_TIMEOUT_S,
                check=False,
            )
            assert done.returncode == 0, f"{page}: {done.stderr}"
            assert done.stdout, page
