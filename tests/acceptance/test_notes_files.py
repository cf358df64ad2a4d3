"""Notes in files as people and programs use them: commands, the SDK by both its ways."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aios_broker.config import KernelConfig
from aios_cli.main import cli
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import Agent, AsyncAgent, InvalidConfig, InvalidSyscall, Restored
from tests.doors import door_of
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(120)
BAD_LINE = '{"content": "good"}\n{"content": "bad", "created_at": 9e9}\n'


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKernel]:
    """A kernel with a state worker."""
    config = KernelConfig(
        state_dir=tmp_path_factory.mktemp("state"), llm_core="simulated", tool_workers=0
    )
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with EmbeddedKernel(config, inherited=settings, temporary=True) as running:
        yield running


@pytest.fixture
def url(kernel: EmbeddedKernel) -> str:
    assert kernel.redis_url is not None
    return kernel.redis_url


def aios(kernel: EmbeddedKernel, *arguments: str, data: bytes | str | None = None) -> Result:
    settings = {
        "AIOS_REDIS_URL": kernel.redis_url,
        "AIOS_DATABASE_URL": kernel.record.database_url,
        "AIOS_STATE_DIR": str(kernel.record.state_dir),
    }
    return CliRunner().invoke(cli, ["memory", *arguments], env=settings, input=data)


def done(kernel: EmbeddedKernel, *arguments: str, data: bytes | str | None = None) -> str:
    result = aios(kernel, *arguments, data=data)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_commands_write_and_read_a_file(kernel: EmbeddedKernel, url: str, tmp_path: Path) -> None:
    with Agent("ann", url=url) as ann:
        ann.memory.add("tea", tags=("a",), metadata={"room": 1.0})
        ann.memory.log("user", "which hotel?", at=1.6e9)
        ann.memory.log("assistant", "the cheapest", at=1.6e9)
    file = tmp_path / "notes.jsonl"
    assert done(kernel, "export", str(file), "--agent", "ann") == f"{file}: 3 notes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.jsonl"]
    piped = done(kernel, "export", "-", "--agent", "ann")
    assert piped == file.read_text()
    [tagged] = done(kernel, "export", "-", "--tag", "a", "--agent", "ann").splitlines()
    assert json.loads(tagged)["metadata"] == {"room": 1.0}
    assert isinstance(json.loads(tagged)["metadata"]["room"], float)

    bob = ("--agent", "bob")
    assert done(kernel, "import", "-", *bob, data=piped) == "3 notes added, 0 there already\n"
    again = json.loads(done(kernel, "import", str(file), *bob, "--json"))
    assert again == {"added": 0, "existing": 3, "expired": 0}
    refused = aios(kernel, "import", "-", *bob, data=BAD_LINE)
    assert refused.exit_code == 4
    assert "line 2, created_at" in refused.stderr
    assert "in the future" in refused.stderr
    missing = aios(kernel, "import", str(tmp_path / "none"), *bob)
    assert missing.exit_code != 0
    assert "none" in missing.stderr
    assert "existing" in done(kernel, "add", "tea", "--dedupe", "--agent", "ann", "--json")


def test_a_failed_export_leaves_the_file_that_was_there(url: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text("before")
    with Agent("cid", url=url) as cid:
        with pytest.raises(InvalidSyscall):
            cid.memory.export(file, since=2.0, until=1.0)
        assert file.read_text() == "before"
        assert [path.name for path in tmp_path.iterdir()] == ["notes.jsonl"]
        with pytest.raises(InvalidConfig, match="cannot be written"):
            cid.memory.export(tmp_path / "no" / "where")
        with pytest.raises(InvalidConfig, match="cannot be read"):
            cid.memory.import_(tmp_path / "none")


def test_both_agents_by_both_ways(url: str) -> None:
    with door_of("http", url) as http, http.sync_agent("eve") as eve:
        eve.memory.add("tea")
        assert eve.memory.add("tea", dedupe=True).existing
        written = io.BytesIO()
        assert eve.memory.export(written) == 1
        again = io.BytesIO(written.getvalue())
        assert eve.memory.import_(again) == Restored(existing=1)

    async def by_redis() -> Restored:
        async with AsyncAgent("fay", url=url) as fay:
            done = await fay.memory.import_(io.BytesIO(written.getvalue()))
            assert await fay.memory.export(io.BytesIO()) == 1
            return done

    assert asyncio.run(by_redis()) == Restored(added=1)


def test_many_are_read_and_deleted_by_both_ways(kernel: EmbeddedKernel, url: str) -> None:
    """Get many by their ids, delete by a filter: parked until a person allows it."""
    with door_of("http", url) as http, http.sync_agent("gil") as gil:
        notes = [gil.memory.add(f"note {n}", tags=("old",) if n % 2 else ()) for n in range(4)]
        wanted = (notes[3].id, notes[0].id)
        assert [note.id for note in gil.memory.list(notes=wanted).notes] == [notes[0].id, wanted[0]]
        shown = done(kernel, "list", "--note", wanted[0], "--agent", "gil", "--json")
        assert [note["id"] for note in json.loads(shown)["result"]["notes"]] == [wanted[0]]
        clearing = gil.memory.clear.start(any_tags=("old",))
        wait_until(lambda: clearing.status().state == "parked")
        settings = {
            "AIOS_REDIS_URL": kernel.redis_url,
            "AIOS_DATABASE_URL": kernel.record.database_url,
            "AIOS_STATE_DIR": str(kernel.record.state_dir),
        }
        approved = CliRunner().invoke(cli, ["approve", clearing.id[:8], "--yes"], env=settings)
        assert approved.exit_code == 0, approved.output
        assert clearing.result(timeout_s=20).changed
        left = {note.id for note in gil.memory.list().notes}
        assert left == {notes[0].id, notes[2].id}
