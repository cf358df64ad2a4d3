"""Tools that go out by rule: real sandboxes, a TLS server of the test's own, no key inside."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aios_broker.contract.errors import SandboxUnavailable, ToolUnavailable
from aios_broker.contract.tools import NetworkRule, RunLimits, ToolCard
from aios_workers.modules.tool.processes import ToolProcesses
from aios_workers.modules.tool.registry import last_paths
from aios_workers.modules.tool.running import NoSandbox, Sandbox, ToolCall, ToolProgram
from aios_workers.modules.tool.sandbox.bubblewrap import open_bubblewrap
from tests.egress_scene import KEY, OWNER, EgressScene, egress_scene

pytestmark = pytest.mark.timeout(120)
NOBODY = 65534
LIMIT_S = 100.0
TOOL = '''
import os, re, socket, ssl, urllib.error, urllib.request


def fetch(url: str, headers: dict[str, str]) -> list:
    filled = {name: value.format(**os.environ) for name, value in headers.items()}
    request = urllib.request.Request(url, headers=filled)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except urllib.error.URLError as error:
        return [0, str(error.reason)]


def direct(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


KEY = re.compile(rb"sk-live-[0-9a-f]{16}")


def seen() -> str:
    """Look at all that can be read here: environments, files, memory of the own process."""
    size, found = 0, False

    def look(data: bytes) -> None:  # piece by piece: together it is more than a tool may use
        nonlocal size, found
        size, found = size + len(data), found or KEY.search(data) is not None

    def look_into(path: str) -> None:
        try:
            with open(path, "rb") as file:
                while data := file.read(1 << 24):
                    look(data)
        except OSError:
            pass

    look(repr(dict(os.environ)).encode())
    for folder, _, names in os.walk("/proc"):
        for name in names:
            if name in ("environ", "cmdline"):
                look_into(os.path.join(folder, name))
    for place in (os.environ["HOME"], "/tmp", "/run", "/etc"):
        for folder, _, names in os.walk(place):
            for name in names:
                look_into(os.path.join(folder, name))
    for line in open("/proc/self/maps"):
        area, rights, *_ = line.split()
        begin, end = (int(each, 16) for each in area.split("-"))
        if "r" in rights and end - begin < 1 << 28:
            with open("/proc/self/mem", "rb", 0) as memory:
                try:
                    memory.seek(begin)
                    look(memory.read(end - begin))
                except (OSError, OverflowError):
                    pass
    return f"{size > 1000000} {found}"
'''


# What an ordinary user's worker does, in a Python that each user can run.
AS_ANOTHER = """
import asyncio, importlib.util, json, os, sys
from pathlib import Path
from tests.integration import test_egress_tools as tested

packages = Path(importlib.util.find_spec("pydantic").origin).parents[1]
last_paths = tested.last_paths
tested.last_paths = lambda: (*last_paths(), packages)

async def main(folder):
    async with tested.egress_scene(folder) as scene:
        async with tested.going(folder, scene, tested.open_bubblewrap()) as tools:
            url = f"https://{scene.host.name}:{scene.host.port}"
            scene.keys([url])
            asked = [scene.rule(paths=("/v1",), secrets=("API_KEY",))], ["API_KEY"]
            headers = {"Authorization": "Bearer {API_KEY}"}
            passed, said = await tools.run("fetch", *asked, url=f"{url}/v1/x", headers=headers)
            refused, _ = await tools.run("fetch", *asked, url=f"{url}/admin", headers=headers)
            seen = await tools.run("seen", *asked)
            port = scene.host.port
            direct = await tools.run("direct", *asked, address="127.0.0.1", port=port)
            has_key = [tested.KEY in text for text in (scene.host.heard[0], said)]
            print(json.dumps([os.geteuid(), passed, refused, has_key, seen, direct]))

asyncio.run(main(Path.cwd()))
"""


class Tools:
    """The functions of the file, run as a worker runs them."""

    def __init__(self, folder: Path, scene: EgressScene, sandbox: Sandbox) -> None:
        self.file = folder / "tools" / "going.py"
        self.file.parent.mkdir()
        self.file.write_text(textwrap.dedent(TOOL))
        self.runner = ToolProcesses(
            folder / "calls", sandbox, {"PATH": "/usr/bin:/bin"}, scene.egress
        )

    async def run(
        self,
        function: str,
        rules: Sequence[NetworkRule] = (),
        secrets: Sequence[str] = (),
        **arguments: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        version = sha256(repr((rules, secrets)).encode()).hexdigest()[:12]
        card = ToolCard(
            name=f"me/{function}",
            version=version,
            network=tuple(rules),
            secrets=tuple(secrets),
            limits=RunLimits(memory_bytes=4 * 1024**3),  # one of them reads all of its memory
        )
        program = ToolProgram(
            card=card,
            function=f"going:{function}",
            python=Path(sys.executable),
            import_paths=(self.file.parent,),
            roots=(self.file.parent,),
            last_paths=last_paths(),
            content=_content(self.file),
        )
        call = ToolCall(uuid4().hex, OWNER, arguments)
        return (await self.runner.run(program, call, lambda _: None)).value


def _content(file: Path) -> tuple[tuple[str, str], ...]:
    return ((str(file.resolve()), sha256(file.read_bytes()).hexdigest()),)


@asynccontextmanager
async def going(folder: Path, scene: EgressScene, sandbox: Sandbox) -> AsyncIterator[Tools]:
    tools = Tools(folder, scene, sandbox)
    try:
        yield tools
    finally:
        await tools.runner.close()


async def test_a_tool_uses_a_key_that_it_never_has(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        going(tmp_path, scene, open_bubblewrap()) as tools,
    ):
        url = f"https://{scene.host.name}:{scene.host.port}"
        scene.keys([url])
        rules, keys = [scene.rule(paths=("/v1",), secrets=("API_KEY",))], ["API_KEY"]
        headers = {"Authorization": "Bearer {API_KEY}"}
        status, said = await tools.run("fetch", rules, keys, url=f"{url}/v1/x", headers=headers)
        assert status == 200
        assert f"Authorization: Bearer {KEY}\r\n" in scene.host.heard[0]
        assert KEY not in said
        assert await tools.run("seen", rules, keys) == "True False"
        status, said = await tools.run("fetch", rules, keys, url=f"{url}/admin", headers=headers)
        assert (status, len(scene.host.heard)) == (403, 1)
        assert "no rule of this tool allows this path" in said


async def test_nothing_leads_out_but_the_rules(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        going(tmp_path, scene, open_bubblewrap()) as tools,
    ):
        rules = [scene.rule()]
        for address, port in (("127.0.0.1", scene.host.port), ("93.184.216.34", 443)):
            assert await tools.run("direct", rules, address=address, port=port) != "connected"
            assert await tools.run("direct", address=address, port=port) != "connected"
        url = f"https://{scene.host.name}:{scene.host.port}/"
        status, _ = await tools.run("fetch", url=url, headers={})
        assert status == 0  # a tool without a rule has no way out at all
        status, _ = await tools.run("fetch", rules, url=url, headers={})
        assert status == 200


async def test_the_way_out_goes_with_the_process(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        async with going(tmp_path, scene, open_bubblewrap()) as tools:
            url = f"https://{scene.host.name}:{scene.host.port}/"
            calls = [tools.run("fetch", [scene.rule()], url=url, headers={}) for _ in range(8)]
            assert {status for status, _ in await asyncio.gather(*calls)} == {200}
            assert len(list((tmp_path / "egress").iterdir())) == 1
        assert list((tmp_path / "egress").iterdir()) == []


async def test_without_a_sandbox_no_tool_that_uses_a_key_runs(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene, going(tmp_path, scene, NoSandbox()) as tools:
        scene.keys([scene.host.name])
        with pytest.raises(SandboxUnavailable):
            await tools.run("seen", [scene.rule()], ["API_KEY"])


async def test_a_key_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        going(tmp_path, scene, open_bubblewrap()) as tools,
    ):
        with pytest.raises(ToolUnavailable, match="not there"):
            await tools.run("seen", [scene.rule()], ["API_KEY"])
        assert not any((tmp_path / "calls").glob("*"))


def test_a_worker_that_is_no_root_has_the_same_ways_out() -> None:
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if os.geteuid() != 0 or python is None:
        pytest.skip("only root can be another user, and only in a Python that each user can run")
    version = subprocess.run([python, "-V"], capture_output=True, check=True, text=True).stdout
    if version.split()[1].rpartition(".")[0] != ".".join(map(str, sys.version_info[:2])):
        pytest.skip(f"the packages that are installed are not for {version.strip()}")
    with tempfile.TemporaryDirectory(prefix="aios-egress-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        done = subprocess.run(
            [python, "-c", AS_ANOTHER],
            env={
                "PATH": os.defpath,
                "HOME": folder,
                "PYTHONPATH": os.pathsep.join(each for each in sys.path if "/.pyenv/" not in each),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd=folder,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [
        NOBODY,
        200,
        403,
        [True, False],
        "True False",
        "ConnectionRefusedError",
    ]
