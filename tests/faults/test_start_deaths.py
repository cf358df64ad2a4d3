"""A worker is killed while it starts sandboxes: none stays, and no line of a tool runs in one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_workers.modules.tool.opening import LOCK, WORK, work_folder
from aios_workers.modules.tool.running import Launch
from aios_workers.modules.tool.sandbox.bubblewrap import open_bubblewrap
from aios_workers.modules.tool.sandbox.view import arguments
from aios_workers.modules.tool.tool_process import LENGTH, MAIN
from tests.caller import WorkerProcess
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(180)

ROUNDS = 5
TOOLS = 4
TIMEOUT_S = 60.0
HANGS = "import time\ntime.sleep(600)\n\ndef f() -> None: ...\n"


def naming(folder: Path) -> dict[int, bytes]:
    """Return the processes whose command names a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in command:
            found[int(path.parent.name)] = command.replace(b"\0", b" ")[:200]
    return found


@pytest.fixture
def described(tmp_path: Path) -> Iterator[Path]:
    """Tools that hang when they are loaded; what killed workers have left goes at the end."""
    (tmp_path / "hangs_when_loaded.py").write_text(HANGS)
    tools = [
        f'[tools."me/f{n}"]\nfunction = "hangs_when_loaded:f"\npath = "{tmp_path}"\n'
        for n in range(TOOLS)
    ]
    file = tmp_path / "tools.toml"
    file.write_text("\n".join(tools))
    yield file
    with work_folder():
        pass


async def test_a_worker_killed_while_it_starts_sandboxes_leaves_none(
    redis_url: str, described: Path, tmp_path: Path
) -> None:
    for _ in range(ROUNDS):
        settings = {"aios_tools": described, "aios_state_dir": tmp_path / "state"}
        with WorkerProcess(redis_url, "tool", **settings) as worker:
            await wait_until_async(lambda: naming(tmp_path), TIMEOUT_S)
            worker.send(signal.SIGKILL)
            await worker.left()
        await wait_until_async(lambda: not naming(tmp_path), TIMEOUT_S)


@pytest.mark.parametrize("mode", ["describe", "serve"])
def test_nothing_is_loaded_where_nobody_says_so(mode: str, tmp_path: Path) -> None:
    """Its worker is gone: whoever is tied to it may not be, yet."""
    (tmp_path / "notes.py").write_text(
        f"open({str(tmp_path / 'loaded')!r}, 'w').close()\n\ndef f() -> None: ...\n"
    )
    request = (
        f'{{"function": "notes:f", "import_paths": ["{tmp_path}"], "last_paths": [], "roots": [], '
        '"whole": false, "by_hints": false}'
    )
    command = [sys.executable, "-I", "-u", str(MAIN), mode, request]

    def said(heard: bytes) -> bytes:
        ended = subprocess.run(
            command, input=heard, capture_output=True, timeout=TIMEOUT_S, check=True
        )
        return ended.stdout

    alone = said(b"")
    assert b"begun" in alone
    assert b"ready" not in alone
    assert not (tmp_path / "loaded").exists()
    assert b"ready" in said(LENGTH.pack(2) + b"{}")
    assert (tmp_path / "loaded").exists()


def test_a_folder_that_another_worker_took_for_left_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other one comes between the making of the folder and the taking of its lock."""
    lock_of, swept = fcntl.flock, list[Path]()

    def flock_late(lock: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.append(Path(os.readlink(f"/proc/self/fd/{lock}")).parent)
            with work_folder():  # it sweeps, and then takes a folder of its own
                assert not swept[0].exists()
        lock_of(lock, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with work_folder() as folder:
        assert folder.exists()
        assert folder != swept[0]
    assert not folder.exists()


def test_what_a_killed_worker_has_left_all_the_same_goes_when_the_next_one_starts() -> None:
    sandbox = open_bubblewrap()
    folder = Path(tempfile.mkdtemp(prefix=WORK))
    (folder / LOCK).touch()
    workspace = folder / "sessions" / "one"
    workspace.mkdir(parents=True)
    launch = Launch(("/usr/bin/env", "sleep", "600"), {"PATH": os.defpath}, workspace)
    command = [str(sandbox.program), *arguments(launch, (), 1 << 20)]
    with subprocess.Popen(command) as left, subprocess.Popen(["sleep", "600"]) as other:
        try:
            wait_until(lambda: len(naming(folder)) > 1, TIMEOUT_S)  # it has begun
            with work_folder():
                assert left.wait(TIMEOUT_S) == -signal.SIGKILL
                wait_until(lambda: not naming(folder), TIMEOUT_S)
                assert not folder.exists()
                assert other.poll() is None
        finally:
            left.kill()
            other.kill()
