"""Programs of agent frameworks, as they stand, on the kernel: an address and a token are all.

Slow: the frameworks are installed into an environment of their own, `.aios/frameworks`, and a real
model answers.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.five_cores import Kernel
from benchmarks.queues.environment import peers_python

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "examples" / "frameworks"
LIMIT_S = 240.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has the frameworks."""
    lock, folder = "requirements-frameworks.lock", Path(".aios") / "frameworks"
    return peers_python(ROOT, print, lock=lock, into=folder)


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a program finds in its environment: the API of a kernel with the embedded model."""
    kernel = Kernel(tmp_path_factory.mktemp("state"))
    with kernel.up([]):
        status = json.loads(kernel.aios("status", "--json"))
        token = json.loads(kernel.aios("token", "framework", "--json"))["token"]
        address = f"{status['api_url']}/v1"
        yield {**os.environ, "OPENAI_BASE_URL": address, "OPENAI_API_KEY": token}


def said(python: Path, environ: dict[str, str], program: str) -> list[str]:
    """Run a program; return the lines that it prints."""
    done = subprocess.run(
        [str(python), "-I", str(PROGRAMS / program)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def test_a_langgraph_program(python: Path, environ: dict[str, str]) -> None:
    *line, verdict = said(python, environ, "langgraph_program.py")
    assert "".join(line).strip()
    judged = json.loads(verdict)
    assert isinstance(judged["fits"], bool)
    assert 0 <= judged["score"] <= 10


def test_a_program_of_the_openai_agents_sdk(python: Path, environ: dict[str, str]) -> None:
    [answer] = said(python, environ, "openai_agents_program.py")
    assert answer.startswith("It is sunny in ")


def test_a_pydantic_ai_program(python: Path, environ: dict[str, str]) -> None:
    [city] = said(python, environ, "pydantic_ai_program.py")
    found = json.loads(city)
    assert set(found) == {"name", "country"}
    assert all(isinstance(each, str) for each in found.values())
