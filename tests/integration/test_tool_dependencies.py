"""What a tool depends on: installed into an environment of its own, from a wheel of the test's."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from aios_broker.contract.tools import ToolCard, ToolResult, ToolRun, ToolShow
from aios_workers.modules.tool.environments import MADE
from tests.caller import Caller
from tests.tool_scene import ToolScene, answer

pytestmark = pytest.mark.timeout(240)
SOON_S = 180.0  # an environment is made, maybe beside others
NAME = "tiny_thing_of_test"
TOOL = f"""
import importlib.metadata, sys
import {NAME}

def run():
    return [{NAME}.ANSWER, importlib.metadata.version("{NAME}"), sys.prefix]
"""


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        user.patience_s = SOON_S
        yield user


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the index there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def build_wheel(folder: Path, version: str, answer_of_it: int) -> None:
    """Write a wheel of one module. Source: the binary distribution format, PEP 427."""
    info = f"{NAME}-{version}.dist-info"
    files = {
        f"{NAME}.py": f"ANSWER = {answer_of_it}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(f"{path},{_digest(text)},{len(text)}\n" for path, text in files.items())
    with zipfile.ZipFile(folder / f"{NAME}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def describe(scene: ToolScene, dependency: str) -> None:
    folder = scene.folder / "needy"
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(TOOL)
    (folder / "tool.toml").write_text(f'entry = "main:run"\ndependencies = ["{dependency}"]\n')
    scene.describe([], f'[tools."me/needy"]\nfolder = "{folder}"\n')


async def called(caller: Caller) -> ToolResult:
    result = await answer(caller, ToolRun("me/needy", {}))
    assert isinstance(result, ToolResult)
    return result


async def test_a_dependency_is_installed_into_an_environment_of_the_tools_own(
    wheels: Path, caller: Caller, tmp_path: Path
) -> None:
    build_wheel(wheels, "1.0", 41)
    scene = ToolScene(tmp_path)
    describe(scene, f"{NAME}==1.0")
    async with scene.worker(caller.url):
        first = await called(caller)
        card = await answer(caller, ToolShow("me/needy"))

    [made] = (tmp_path / "state" / "tool-environments").glob(f"*/{MADE}")
    assert first.value == [41, "1.0", str(made.parent)]
    assert first.run.sandbox == "bubblewrap"
    assert importlib.util.find_spec(NAME) is None  # nothing came to the worker itself
    assert isinstance(card, ToolCard)
    assert card.dependencies == (f"{NAME}==1.0",)
    assert f"{NAME}==1.0" in json.loads(made.read_text())["installed"]

    # Another worker finds it as it is; another version has an environment of its own.
    before = made.stat().st_mtime_ns
    async with scene.worker(caller.url):
        again = await called(caller)
        assert (again.value, again.run.version) == (first.value, first.run.version)
        assert made.stat().st_mtime_ns == before
    build_wheel(wheels, "2.0", 42)
    describe(scene, f"{NAME}==2.0")
    async with scene.worker(caller.url):
        other = await called(caller)
    assert isinstance(other.value, list)
    assert other.value[:2] == [42, "2.0"]
    assert other.value[2] != str(made.parent)
    assert other.run.version != first.run.version
