"""The pages of the doors: their examples run as they stand, against a kernel with its API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api_scene import ApiScene

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("how-to-http.md", "how-to-gateway.md", "how-to-a2a.md")
ENDINGS = {"sh": "sh", "python": "py", "js": "mjs"}
INTERPRETERS = {"sh": ["bash", "-eu", "-o", "pipefail"], "python": [sys.executable], "js": ["node"]}
LIMIT_S = 50


def blocks_of(page: str, *kinds: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(kind, block) for kind, block in found if kind in kinds]


EXAMPLES = [
    pytest.param(kind, block, id=f"{page}-{number}-{kind}")
    for page in PAGES
    for number, (kind, block) in enumerate(blocks_of(page, *INTERPRETERS))
    if not block.startswith("aios ")  # what starts the kernel, which runs already
]


@pytest.mark.parametrize(("kind", "block"), EXAMPLES)
def test_the_example_runs(api: ApiScene, kind: str, block: str, tmp_path: Path) -> None:
    program = INTERPRETERS[kind]
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed")
    file = tmp_path / f"example.{ENDINGS[kind]}"
    file.write_text(block, encoding="utf-8")
    done = subprocess.run(
        [*program, str(file)],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "AIOS_API": api.url,
            "AIOS_TOKEN": api.token("ada", "default"),
            "AIOS_OPERATOR": api.operator,
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert '"error":' not in done.stdout


def test_each_door_has_an_example_of_each_kind() -> None:
    for page in PAGES:
        assert {kind for kind, _ in blocks_of(page, *INTERPRETERS)} == set(INTERPRETERS)


def test_settings_of_coding_agents_can_be_read() -> None:
    [(_, codex)] = blocks_of("how-to-gateway.md", "toml")
    settings = tomllib.loads(codex)
    assert settings["model_providers"][settings["model_provider"]]["wire_api"] == "responses"
    [(_, opencode)] = blocks_of("how-to-gateway.md", "json")
    provider, _, model = json.loads(opencode)["model"].partition("/")
    assert model in json.loads(opencode)["provider"][provider]["models"]
