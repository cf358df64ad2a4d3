"""Programs of others, in environments of their own, told nothing but an address and a key.

Their packages come from the index that pip is set up with.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api_scene import ApiScene

PROGRAMS = Path(__file__).resolve().parents[1] / "data" / "gateway_programs"
INSTALL_LIMIT_S = 400.0
RUN_LIMIT_S = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_LIMIT_S + RUN_LIMIT_S)]


def said(api: ApiScene, tmp_path: Path, program: str, *packages: str) -> dict[str, Any]:
    """Return what a program prints, in an environment with these packages."""
    subprocess.run(
        [sys.executable, "-P", "-m", "venv", str(tmp_path / "venv")], check=True, timeout=60
    )
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    subprocess.run(install, check=True, timeout=INSTALL_LIMIT_S)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OPENAI_BASE_URL": f"{api.url}/v1",
        "OPENAI_API_KEY": api.agent,
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }
    ran = subprocess.run(
        [python, str(PROGRAMS / program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def is_point(found: object) -> bool:
    return isinstance(found, dict) and isinstance(found["x"], int) and isinstance(found["y"], bool)


def test_the_client_that_agents_pinned(api: ApiScene, tmp_path: Path) -> None:
    found = said(api, tmp_path, "old_client.py", "openai==1.39.0", "httpx==0.27.2")
    assert found["version"] == "1.39.0"
    assert found["whole"] == found["streamed"] == found["again"] != ""
    assert found["tokens"] == 8
    assert found["dimensions"] > 1
    assert found["plain"]
    assert found["models"]


def test_langgraph(api: ApiScene, tmp_path: Path) -> None:
    found = said(api, tmp_path, "graph.py", "langgraph==1.2.24", "langchain-openai==1.7.3")
    assert found["draft"]
    assert is_point(found["point"])
    assert found["vectors"] == 2


def test_openais_agents(api: ApiScene, tmp_path: Path) -> None:
    assert is_point(said(api, tmp_path, "openai_agent.py", "openai-agents==0.24.0")["point"])


def test_pydantic_ai(api: ApiScene, tmp_path: Path) -> None:
    package = "pydantic-ai-slim[openai]==2.68.0"
    assert is_point(said(api, tmp_path, "pydantic_agent.py", package)["point"])
