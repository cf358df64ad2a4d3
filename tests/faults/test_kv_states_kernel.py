"""A kernel whose llm worker is killed: the next one goes on from the state that the core left."""

import asyncio
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from aios_broker.config import KernelConfig
from aios_local.embedded.state import StateDir
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_local.supervisor.programs import Program
from aios_sdk import AsyncAgent
from tests.integration.test_metrics import free_port
from tests.waiting import wait_until_async

PROMPT = "Tell me a long story about a lighthouse keeper who counts the ships that pass. " * 4
SETTINGS = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}


def states_read(first_port: int) -> float:
    """Return the sum over the pages of all processes."""
    total = 0.0
    for port in range(first_port, first_port + 8):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                lines = page.read().decode().splitlines()
        except OSError:
            continue
        total += sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith('aios_core_kv_states_total{outcome="read"}')
        )
    return total


@pytest.mark.timeout(240)
def test_a_killed_workers_generation_goes_on_from_its_state(tmp_path: Path) -> None:
    port = free_port()
    config = KernelConfig(
        state_dir=tmp_path, llm_core="llama", llm_slots=1, tool_workers=0, metrics_port=port
    )
    kv_dir = StateDir(tmp_path).kv_dir
    with EmbeddedKernel(config, inherited=SETTINGS) as kernel:
        assert kv_dir.stat().st_mode & 0o777 == 0o700

        async def work() -> None:
            async with AsyncAgent("teller", url=kernel.redis_url) as me:
                whole = await me.llm.chat(PROMPT, max_tokens=60)
                stream = me.llm.chat.stream(PROMPT, max_tokens=60)
                text = await anext(stream)  # it has begun
                kernel.kill("llm-1")
                text += "".join([piece async for piece in stream])
                assert text == whole.text
                assert stream.call.timings is not None
                assert stream.call.timings.attempts == 2
                await wait_until_async(lambda: asyncio.to_thread(states_read, port))

        asyncio.run(work())
    assert not kv_dir.exists()


def test_what_a_killed_kernel_left_is_removed_by_down(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    state.kv_dir.mkdir(mode=0o700)
    (state.kv_dir / "left.kv").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "aios_cli", "down"],
        env={**SETTINGS, "AIOS_STATE_DIR": str(state.path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (ended.returncode, state.kv_dir.exists()) == (0, False)


@pytest.mark.parametrize("value", ["", "/elsewhere", None])
def test_a_kernel_tells_its_workers_the_folder_unless_one_is_set(
    tmp_path: Path, value: str | None
) -> None:
    """An empty setting is one, too: nothing is shared."""
    told = tmp_path / "told"
    code = (
        "import os, sys, pathlib; "
        "pathlib.Path(sys.argv[1]).write_text(os.environ['AIOS_LLM_KV_DIR'])"
    )
    config = KernelConfig(
        state_dir=tmp_path / "state",
        redis_url="redis://127.0.0.1:1/0",
        database_url="postgresql://127.0.0.1:1/none",
    )
    inherited = SETTINGS if value is None else {**SETTINGS, "AIOS_LLM_KV_DIR": value}
    tell = Program("tell", (sys.executable, "-c", code, str(told)), stage=0, one_shot=True)
    with EmbeddedKernel(config, programs=[tell], inherited=inherited):
        pass
    expected = str(StateDir(config.state_dir).kv_dir) if value is None else value
    assert told.read_text() == expected
