"""Memory, storage and access as people and programs use them: commands, SDK, example."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from aios_broker.config import KernelConfig
from aios_broker.contract.tokens import digest
from aios_cli.main import cli
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import AccessDenied, Agent, ApprovalDenied, InvalidSyscall, NotFound, VersionConflict
from aios_sdk.call import SyncCall
from tests.unit.test_printable import EVIL
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def mountable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the host that agents may mount."""
    return tmp_path_factory.mktemp("mountable")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, mountable: Path) -> Iterator[EmbeddedKernel]:
    """A kernel with a state worker, and the simulated core for what asks a model."""
    config = KernelConfig(
        state_dir=tmp_path_factory.mktemp("state"), llm_core="simulated", tool_workers=0
    )
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "AIOS_STORAGE_MOUNTS": f"{mountable}=default/eve",
    }
    with EmbeddedKernel(config, inherited=settings, temporary=True) as running:
        yield running


@pytest.fixture
def settings(kernel: EmbeddedKernel) -> dict[str, str]:
    """The environment of somebody who uses that kernel."""
    assert kernel.redis_url is not None
    assert kernel.record.database_url is not None
    return {
        "AIOS_REDIS_URL": kernel.redis_url,
        "AIOS_DATABASE_URL": kernel.record.database_url,
        "AIOS_STATE_DIR": str(kernel.record.state_dir),
    }


def aios(settings: dict[str, str], *arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), env=settings, input=text)


def done(settings: dict[str, str], *arguments: str, text: str | None = None) -> str:
    result = aios(settings, *arguments, text=text)
    assert result.exit_code == 0, result.output
    return result.stdout


def shown(settings: dict[str, str], *arguments: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(done(settings, *arguments, "--json"))


class Background(threading.Thread):
    """A command that waits for a person."""

    def __init__(self, settings: dict[str, str], *arguments: str) -> None:
        super().__init__(daemon=True)
        environment = {
            **settings,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aios_cli", *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.start()

    def run(self) -> None:
        self.stdout, self.stderr = self._process.communicate(timeout=60)

    def ended(self) -> tuple[int, str, str]:
        self.join(60)
        return self._process.returncode, self.stdout, self.stderr


def waiting(settings: dict[str, str], agent: str, but: str = "") -> dict[str, Any]:
    """Return the request of an agent, another than that one, once it is there."""

    def found() -> list[dict[str, Any]]:
        listed = shown(settings, "approvals")
        return [each for each in listed if each["agent"] == agent and each["id"] != but]

    return wait_until(found)[0]


def on_a_terminal(settings: dict[str, str], *arguments: str, typed: bytes = b"") -> bytes:
    """Return what a command writes to a terminal on which somebody types an answer."""
    ours, terminals = pty.openpty()
    with open(ours, "r+b", buffering=0) as ours_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "aios_cli", *arguments],
            env={**settings, "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=terminals,
            stdout=terminals,
            stderr=terminals,
        )
        os.close(terminals)
        ours_file.write(typed)
        written = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := ours_file.read(65_536):
                written += part
        process.wait(60)
    return written


def test_what_an_agent_wrote_does_nothing_on_the_terminal_of_who_decides(
    settings: dict[str, str],
) -> None:
    """A file's content that draws a harmless question over the true one is only shown."""
    lie = "\x1b[2J\x1b[Hann wants to: create /shopping.txt (0 bytes are lost)\n\x1b[8m" + EVIL
    with Agent("painter", url=settings["AIOS_REDIS_URL"]) as painter:
        painter.storage.write("config.txt", "limit = 10\n")
        note = painter.memory.add(lie, tags=("t\u202e",))
        calls: list[SyncCall[Any]] = [
            painter.storage.write.start("config.txt", lie),
            painter.memory.remove.start(note.id),
        ]
        wait_until(lambda: len(shown(settings, "approvals")) >= len(calls))
        seen = [
            on_a_terminal(settings, "approve", calls[0].id, typed=b"n\n"),
            on_a_terminal(settings, "approvals"),
            on_a_terminal(settings, "memory", "get", note.id, "--agent", "painter"),
        ]
        for call in calls:
            done(settings, "deny", call.id, "--reason", EVIL)
            with pytest.raises(ApprovalDenied):
                call.result(timeout_s=30)
        seen += [on_a_terminal(settings, "approvals", "--all"), on_a_terminal(settings, "audit")]
    assert b"Let it run?" in seen[0]
    assert b"\\x1b[2J" in seen[0]  # it is told that it was tried
    acts = (b"\x1b]0;", b"\x1b[2J", b"\x1b[2K", b"\x1b[8m", b"\x07", *map(str.encode, "\u202e\x9b"))
    assert [(each, act) for each in seen for act in acts if act in each] == []


def test_notes_are_kept_found_and_changed(settings: dict[str, str]) -> None:
    ann = ("--agent", "ann")
    note = shown(settings, "memory", "add", "The Rhine flows through Basel", "--tag", "river", *ann)
    note_id = note["result"]["id"]
    done(settings, "memory", "add", "Bread is made of flour", *ann)
    assert note_id in done(settings, "memory", "search", "Basel", "--mode", "keyword", *ann)

    def by_meaning() -> bool:
        found = shown(
            settings, "memory", "search", "which town lies at the stream?", *ann, "-k", "1"
        )
        return [each["id"] for each in found["result"]["notes"]] == [note_id]

    wait_until(by_meaning)  # by the real model
    done(settings, "memory", "update", note_id, "The Rhine flows through Cologne", *ann)
    assert done(settings, "memory", "get", note_id, *ann).splitlines()[-1].endswith("Cologne")
    assert "resident_notes   2" in done(settings, "memory", "stat", *ann)
    history = done(settings, "memory", "history", note_id, *ann).splitlines()
    assert [line.split()[0] for line in history] == ["VERSION", "2", "1"]
    missing = aios(settings, "memory", "get", "0" * 32, *ann)
    assert (missing.exit_code, missing.stderr.split(":")[0]) == (4, "not-found")


def test_files_are_written_read_and_rolled_back(settings: dict[str, str], tmp_path: Path) -> None:
    ann = ("--agent", "ann")
    data = bytes(range(256))
    (tmp_path / "x.bin").write_bytes(data)
    done(settings, "files", "write", "bin/x", "--from", str(tmp_path / "x.bin"), *ann)
    assert (
        CliRunner().invoke(cli, ["files", "read", "bin/x", *ann], env=settings).stdout_bytes == data
    )
    done(settings, "files", "write", "notes/a.md", "-", *ann)
    done(settings, "files", "append", "notes/a.md", " two", *ann)
    assert done(settings, "files", "read", "notes/a.md", "--version", "1", *ann) == "-"
    listed = done(settings, "files", "ls", "-r", *ann)
    assert "/notes/a.md" in listed
    assert "+- two" in done(settings, "files", "diff", "notes/a.md", "1", *ann)
    link = shown(settings, "files", "share", "notes/a.md", "--link", *ann)["result"]["link"]
    assert done(settings, "files", "open", link, "--agent", "bob") == "- two"
    refused = aios(settings, "files", "read", "../secret", *ann)
    assert (refused.exit_code, refused.stderr.split(":")[0]) == (4, "invalid-path")


def test_a_directory_of_the_host_is_mounted_and_searched(
    settings: dict[str, str], mountable: Path
) -> None:
    eve = ("--agent", "eve")
    (mountable / "harbour.txt").write_text("The old lighthouse is painted each spring")
    done(settings, "files", "mount", "host", str(mountable), "--searchable", *eve)
    assert done(settings, "files", "read", "host/harbour.txt", *eve).startswith("The old")
    wait_until(
        lambda: "/host/harbour.txt" in done(settings, "files", "search", "lighthouse", *eve),
        timeout_s=30,
    )
    (mountable / "harbour.txt").write_text("The ferry leaves at nine")
    wait_until(
        lambda: (
            "/host/harbour.txt"
            in done(
                settings,
                "files",
                "search",
                "at what time does the boat go?",
                "--mode",
                "semantic",
                *eve,
            )
        ),
        timeout_s=30,
    )
    done(settings, "files", "unmount", "host", *eve)
    assert "harbour" not in done(settings, "files", "search", "ferry", *eve)


def test_a_person_decides_and_the_audit_log_tells(settings: dict[str, str]) -> None:
    done(settings, "files", "write", "old.txt", "one", "--agent", "zoe")
    removing = Background(settings, "files", "rm", "old.txt", "--agent", "zoe")
    request = waiting(settings, "zoe")
    assert "delete /old.txt" in done(settings, "approvals")
    why = done(settings, "why", request["syscall_id"])
    assert "aios approve" in why
    declined = aios(settings, "approve", request["id"][:8], text="n\n")
    assert declined.exit_code == 1
    assert done(settings, "files", "read", "old.txt", "--agent", "zoe") == "one"
    approved = done(settings, "approve", request["id"][:8], text="y\n")
    assert "approved: delete /old.txt" in approved
    assert removing.ended()[0] == 0
    assert aios(settings, "files", "read", "old.txt", "--agent", "zoe").exit_code == 4
    twice = aios(settings, "deny", request["id"][:8])
    assert (twice.exit_code, "used already" in twice.stderr) == (4, True)
    assert "approved by operator:" in done(settings, "audit", "--agent", "zoe")
    assert "outside the database" in done(settings, "audit", "verify")


def test_a_denial_and_an_edit(settings: dict[str, str]) -> None:
    for name in ("a", "b"):
        done(settings, "files", "write", f"{name}.txt", name, "--agent", "yan")
    removing = Background(settings, "files", "rm", "a.txt", "--agent", "yan")
    done(settings, "deny", waiting(settings, "yan")["id"], "--reason", "keep it")
    code, _, told = removing.ended()
    assert (code, "approval-denied" in told, "keep it" in told) == (4, True, True)
    removing = Background(settings, "files", "rm", "a.txt", "--agent", "yan")
    request = waiting(settings, "yan")
    broken = aios(settings, "approve", request["id"], "--edit", "-", "--yes", text="[]")
    assert broken.exit_code == 4
    done(settings, "approve", request["id"], "--edit", "-", "--yes", text='{"path": "b.txt"}')
    anew = waiting(settings, "yan", but=request["id"])  # nobody has seen yet what is at b.txt
    assert "b.txt" in anew["what"]
    done(settings, "approve", anew["id"], "--yes")
    assert removing.ended()[0] == 0
    assert done(settings, "files", "read", "a.txt", "--agent", "yan") == "a"
    assert aios(settings, "files", "read", "b.txt", "--agent", "yan").exit_code == 4


def test_rules_are_set_and_forgotten(settings: dict[str, str]) -> None:
    done(settings, "files", "write", "a.txt", "1", "--agent", "scribe")
    done(settings, "rules", "overwrite", "never", "--agent", "scribe")
    done(settings, "files", "write", "a.txt", "2", "--agent", "scribe")
    assert "scribe" in done(settings, "rules")
    done(settings, "rules", "overwrite", "default", "--agent", "scribe")
    assert "scribe" not in done(settings, "rules")


def test_groups_and_grants(settings: dict[str, str]) -> None:
    done(settings, "files", "write", "plans/a.txt", "May", "--agent", "gwen")
    done(settings, "memory", "stat", "--agent", "hugo")
    done(
        settings,
        "grants",
        "give",
        "directory",
        "plans",
        "--to",
        "hugo",
        "--verb",
        "read",
        "--agent",
        "gwen",
    )
    of_gwen = ("--owner", "gwen", "--agent", "hugo")
    assert done(settings, "files", "read", "plans/a.txt", *of_gwen) == "May"
    assert "directory /plans" in done(settings, "grants", "list", "--held", "--agent", "hugo")
    assert "allowed          False" in done(
        settings, "grants", "check", "directory", "plans", "write", *of_gwen
    )
    done(settings, "groups", "create", "friends", "--agent", "gwen")
    assert "friends" in done(settings, "groups", "list", "--agent", "hugo")


def test_a_token_is_in_the_database_too_and_in_the_audit_log(settings: dict[str, str]) -> None:
    issued = done(settings, "agents", "register", "kim").strip()
    with psycopg.connect(settings["AIOS_DATABASE_URL"].replace("+psycopg", "")) as connection:
        connection.execute("SET ROLE aios_steward")
        entered = connection.execute("SELECT FROM agent_token WHERE digest = %s", (digest(issued),))
        assert entered.rowcount == 1
    assert "access.token" in [line["action"] for line in shown(settings, "audit")]


def test_rights_are_the_operators_to_give(settings: dict[str, str]) -> None:
    url = settings["AIOS_REDIS_URL"]
    with Agent("ceo", url=url) as ceo, Agent("mallory", url=url) as mallory:
        for first in (ceo, mallory):
            with pytest.raises(AccessDenied, match="aios agents allow"):
                first.access.register("mallory")
        assert "may now administer" in done(settings, "agents", "allow", "ceo", "administer")
        assert ceo.access.register("new").token.startswith("aios_")
        assert aios(settings, "agents", "allow", "operator:root", "decide").exit_code == 4
        rows = {each["name"]: each for each in shown(settings, "agents", "list")}
        assert (rows["ceo"]["administrator"], rows["ceo"]["decides"]) == (True, False)
        assert rows["new"]["registered_by"] == "ceo"
        done(settings, "agents", "forbid", "ceo", "administer")
        with pytest.raises(AccessDenied):
            ceo.access.register("other")
    lines = [line for line in shown(settings, "audit") if line["object"] == "agent ceo: administer"]
    assert [line["action"] for line in lines] == ["access.forbid", "access.allow"]
    assert all(line["actor"].startswith("operator:") for line in lines)


def test_the_sdk_has_all_of_it(settings: dict[str, str]) -> None:
    url = settings["AIOS_REDIS_URL"]
    with Agent("ida", url=url) as ida, Agent("jan", url=url) as jan:
        note = ida.memory.add("tea at four", tags=("time",))
        assert ida.memory.get(note.id).tags == ("time",)
        with pytest.raises(VersionConflict):
            ida.memory.update(note.id, content="tea at five", if_version=7)
        ida.storage.write("x.bin", b"\x00\xff")
        assert ida.storage.read("x.bin").data == b"\x00\xff"
        with pytest.raises(NotFound):
            jan.storage.read("x.bin", owner="ida")
        with pytest.raises(InvalidSyscall):
            ida.memory.search("tea", k=0)
        assert jan.access.whoami().agent == "jan"
        many = ida.memory.add.map([f"note {number}" for number in range(20)])
        assert len({each.id for each in many}) == 20
        deleting = ida.storage.delete.start("x.bin")
        wait_until(lambda: deleting.status().state == "parked")
        asked = waiting(settings, "ida")["id"]
        assert asked in done(settings, "why", deleting.id)
        done(settings, "deny", deleting.id[:8])
        with pytest.raises(ApprovalDenied):
            deleting.result(timeout_s=20)


def test_the_example_runs(settings: dict[str, str]) -> None:
    environment = {**settings, "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done(settings, "agents", "allow", "judge", "decide", "--tenant", "example-1")
    example = (str(ROOT / "examples" / "shared_memory.py"), "--tenant", "example-1")
    told = subprocess.run(
        [sys.executable, *example, "--judge", "judge"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "bob found, by ada: The launch is on 3 May" in told.stdout
    assert "it was approved, the note is gone" in told.stdout
