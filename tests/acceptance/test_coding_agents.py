"""Claude Code, Codex CLI and OpenCode, as their makers publish them, on a kernel."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aios_broker.config import KernelConfig
from aios_local.supervisor.kernel import EmbeddedKernel
from tests.api_scene import ApiScene

PACKAGES = ("@anthropic-ai/claude-code", "@openai/codex", "opencode-ai")
INSTALLERS = ("@anthropic-ai/claude-code/install.cjs", "opencode-ai/postinstall.mjs")
LIMIT_S = 120.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]

CODEX = """
model = "default"
model_provider = "aios"
web_search = "disabled"

[model_providers.aios]
name = "AIOS"
base_url = "{url}/v1"
env_key = "AIOS_TOKEN"
wire_api = "responses"
"""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a coding agent works: its programs, a home of its own, a kernel."""

    folder: Path
    api: ApiScene
    token: str

    def run(self, program: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run one of them on a question."""
        return subprocess.run(
            [str(self.folder / "node_modules" / ".bin" / program), *words],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder / "home"),
                "AIOS_TOKEN": self.token,
                **environ,
            },
            cwd=self.folder / "home" / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three programs, fetched from the registry of their packages."""
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES],
        check=True,
        cwd=folder,
        timeout=600,
    )
    for installer in INSTALLERS:
        script = folder / "node_modules" / installer
        subprocess.run(["node", str(script)], check=True, cwd=script.parent, timeout=600)
    return folder


@pytest.fixture(scope="module")
def desk(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A kernel whose core has room for the long prompts of coding agents."""
    (programs / "home" / "work").mkdir(parents=True)
    config = KernelConfig(
        state_dir=tmp_path_factory.mktemp("kernel"), llm_core="simulated", llm_slots=8
    )
    environ = {
        **os.environ,
        "AIOS_LLM_CONTEXT_TOKENS": "400000",
        "AIOS_SIMULATED_CORE_KV_TOKENS": "4000000",
        "AIOS_SIMULATED_CORE_END_PROBABILITY": "0.01",  # so often an answer has nothing in it
    }
    with EmbeddedKernel(config, inherited=environ) as kernel:
        api = ApiScene(kernel, kernel.redis_url, kernel.database_url)
        yield Desk(programs, api, api.token("coder"))


def test_claude_code_gets_its_answer(desk: Desk) -> None:
    done = desk.run(
        *("claude", "-p", "Say hello", "--max-turns", "2", "--output-format", "json"),
        ANTHROPIC_BASE_URL=desk.api.url,
        ANTHROPIC_AUTH_TOKEN=desk.token,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )
    told = json.loads(done.stdout)
    assert not told["is_error"], told
    assert told["result"]
    assert told["usage"]["output_tokens"] > 0


def test_codex_gets_its_answer(desk: Desk) -> None:
    settings = desk.folder / "home" / ".codex" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(CODEX.format(url=desk.api.url))
    done = desk.run("codex", "exec", "--skip-git-repo-check", "--json", "Say hello")
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stdout + done.stderr
    [usage] = [each["usage"] for each in events if each["type"] == "turn.completed"]
    assert usage["output_tokens"] > 0


def test_opencode_gets_its_answer(desk: Desk) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "AIOS",
        "options": {"baseURL": f"{desk.api.url}/v1", "apiKey": "{env:AIOS_TOKEN}"},
        "models": {"default": {"name": "default"}},
    }
    settings = {"provider": {"aios": provider}, "model": "aios/default", "autoupdate": False}
    work = desk.folder / "home" / "work"
    (work / "opencode.json").write_text(json.dumps(settings))
    done = desk.run("opencode", "run", "Say hello")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
