"""`aios/http_fetch`: through the way out alone; what no rule allows says which one is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aios_broker.contract.errors import AccessDenied, InvalidArguments
from aios_broker.tool_catalogue import parse_tools
from aios_workers.modules.tool.kernel_tool_entries import with_kernel_tools
from aios_workers.modules.tool.opening import open_registry
from aios_workers.modules.tool.processes import ToolProcesses
from aios_workers.modules.tool.running import NoSandbox, Sandbox, ToolCall
from aios_workers.modules.tool.sandbox.bubblewrap import open_bubblewrap
from tests.egress_scene import KEY, OWNER, EgressScene, egress_scene

pytestmark = pytest.mark.timeout(120)
NAME = "aios/http_fetch"
PAGE = b"<html><head><title>T</title></head><body><h1>Hello</h1><p>w\xc3\xb6rld</p></body></html>"


class Fetching:
    """The tool, run as a worker runs it."""

    def __init__(self, folder: Path, scene: EgressScene, sandbox: Sandbox) -> None:
        self._folder = folder
        self._registry = open_registry(folder / "tools.toml", folder, {}, folder, sandbox=sandbox)
        self.runner = ToolProcesses(
            folder / "calls", sandbox, {"PATH": "/usr/bin:/bin"}, scene.egress
        )

    async def __call__(self, url: str, rules: str = "", **arguments: Any) -> Any:  # noqa: ANN401
        file = f'[tools."{NAME}"]\n{rules}\n' if rules else ""
        entry = with_kernel_tools(parse_tools(file)).tools[NAME]
        program = await self._registry.described(NAME, entry)
        call = ToolCall(uuid4().hex, OWNER, {"url": url, **arguments})
        return (await self.runner.run(program, call, lambda _: None)).value


@asynccontextmanager
async def fetching(folder: Path, scene: EgressScene, sandbox: Sandbox) -> AsyncIterator[Fetching]:
    fetch = Fetching(folder, scene, sandbox)
    try:
        yield fetch
    finally:
        await fetch.runner.close()


def answered(content: bytes, kind: str, *more: str, status: str = "200 OK") -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(content)}",
        f"Content-Type: {kind}",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


async def test_it_reads_what_a_rule_names(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        fetching(tmp_path, scene, open_bubblewrap()) as fetch,
    ):
        host = f"{scene.host.name}:{scene.host.port}"
        url = f"https://{host}"
        rules = f'network = [{{ host = "{host}", methods = ["GET", "POST"], paths = ["/open"] }}]'
        scene.host.answers |= {
            "/open": answered(PAGE, "text/html"),
            "/open/json": answered(b'{"a": 1}', "application/json"),
            "/open/raw": answered(b"\x00\x01", "image/png"),
            "/open/long": answered(b"x" * 3_000_000, "text/plain"),
            "/open/there": answered(b"", "text/html", "Location: /open/json", status="302 Found"),
            "/open/out": answered(
                b"", "text/html", "Location: https://other.example.org/", status="302 Found"
            ),
            "/open/round": answered(b"", "a/b", "Location: /open/round", status="302 Found"),
            "/open/gone": answered(b"gone", "text/plain", status="404 Not Found"),
        }
        page = await fetch(f"{url}/open", rules)
        assert (page["status"], page["title"], page["text"]) == (200, "T", "Hello\n\nwörld")
        assert (await fetch(f"{url}/open/json", rules))["text"] == '{"a": 1}'
        assert (await fetch(f"{url}/open/raw", rules))["no_text"] is True
        long = await fetch(f"{url}/open/long", rules, max_characters=100)
        assert (long["text"], long["more"]) == ("x" * 100, True)
        there = await fetch(f"{url}/open/there", rules)
        assert (there["url"], there["text"]) == (f"{url}/open/json", '{"a": 1}')
        assert (await fetch(f"{url}/open/gone", rules))["status"] == 404
        sent = await fetch(f"{url}/open/echo", rules, method="POST", body="told")
        assert sent["text"].endswith("told")

        with pytest.raises(InvalidArguments, match="redirected more than 5 times"):
            await fetch(f"{url}/open/round", rules)
        with pytest.raises(AccessDenied, match=r"other\.example\.org") as caught:
            await fetch(f"{url}/open/out", rules)
        assert 'host = "other.example.org"' in str(caught.value.remedy)
        with pytest.raises(AccessDenied, match="no rule of this tool allows this path"):
            await fetch(f"{url}/closed", rules)
        with pytest.raises(AccessDenied, match="no rule"):
            await fetch(f"{url}/open", rules, method="DELETE")


async def test_without_a_rule_it_reaches_nothing_and_says_which_to_write(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        fetching(tmp_path, scene, open_bubblewrap()) as fetch,
    ):
        with pytest.raises(AccessDenied, match="no rule") as caught:
            await fetch("https://api.github.com/user", method="POST")
        assert caught.value.field == "body.arguments.url"
        remedy = str(caught.value.remedy)
        assert '[tools."aios/http_fetch"]' in remedy
        # What it says to write is a file that does.
        rule = remedy[remedy.index("network = ") :]
        entry = parse_tools(f'[tools."{NAME}"]\n{rule}\n').tools[NAME]
        assert entry.network is not None
        assert (entry.network[0].host, entry.network[0].methods) == ("api.github.com", ("POST",))
        assert scene.looked_up == []
        for url in (
            "ftp://x.org",
            "https://",
            "file:///etc/passwd",
            "https://a:b@x.org",
            "x",
            "http://[::",
        ):
            with pytest.raises(InvalidArguments) as wrong:
                await fetch(url)
            assert [fault.path for fault in wrong.value.faults] == ["/url"]


async def test_a_key_is_put_in_outside(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        fetching(tmp_path, scene, open_bubblewrap()) as fetch,
    ):
        host = f"{scene.host.name}:{scene.host.port}"
        scene.keys([f"https://{host}"])
        rules = f'secrets = ["API_KEY"]\nnetwork = [{{ host = "{host}", secrets = ["API_KEY"] }}]'
        said = await fetch(
            f"https://{host}/", rules, headers={"Authorization": "Bearer {API_KEY}", "X": "{HOME}"}
        )
        assert f"Authorization: Bearer {KEY}\r\n" in scene.host.heard[0]
        assert "X: {HOME}" in scene.host.heard[0]
        assert KEY not in said["text"]


async def test_without_a_sandbox_it_reaches_nothing(tmp_path: Path) -> None:
    """Nothing would hold it to its rules."""
    async with (
        egress_scene(tmp_path) as scene,
        fetching(tmp_path, scene, NoSandbox()) as fetch,
    ):
        host = f"{scene.host.name}:{scene.host.port}"
        with pytest.raises(AccessDenied):
            await fetch(f"https://{host}/", f'network = [{{ host = "{host}" }}]')
        assert scene.host.heard == []
