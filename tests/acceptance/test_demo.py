"""`aios demo`: it keeps its promises, says which one it broke, and leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from tests.waiting import wait_until

DEMO_TIMEOUT_S = 240
WATCHED = re.compile(r"watch it: (http://\S+/login/link\?key=\S+) ")
Demo = subprocess.Popen[str]
pytestmark = pytest.mark.timeout(DEMO_TIMEOUT_S + 30)


class Start(Protocol):
    def __call__(self, folder: Path, *arguments: str, **settings: str) -> Demo: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts demos whose temporary files go below a folder; those that still run are ended."""
    started: list[Demo] = []

    def start_one(folder: Path, *arguments: str, **settings: str) -> Demo:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
        path = {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
        demo = subprocess.Popen(
            [sys.executable, "-m", "aios_cli", "demo", *arguments],
            env={**kept, **path, **settings},
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(demo)
        return demo

    yield start_one
    for demo in started:
        if demo.poll() is None:
            demo.kill()
            demo.communicate()


def ended(demo: Demo) -> tuple[int, str, str]:
    output, errors = demo.communicate(timeout=DEMO_TIMEOUT_S)
    return demo.returncode, output, errors


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("aios-")]


def processes_below(folder: Path) -> list[str]:
    """Return the command lines that name a path in `folder`, those of other demos left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


def test_two_demos_at_once_keep_their_promises_and_leave_nothing(
    start: Start, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    options = ("--core", "simulated", "--json", "figures.json", "--plot", "schedule.png")
    demos = [start(folder, *options) for folder in folders]

    for demo, folder in zip(demos, folders, strict=True):
        code, output, errors = ended(demo)
        assert (code, errors) == (0, ""), output
        assert "\x1b" not in output
        assert "identical, id for id" in output
        check_figures(json.loads((folder / "figures.json").read_text()))
        assert (folder / "schedule.png").read_bytes().startswith(b"\x89PNG")
        assert leftovers(folder) == []
        assert processes_below(folder) == []


def test_its_page_is_open_while_it_runs(start: Start, tmp_path: Path) -> None:
    demo = start(tmp_path, "--core", "simulated")
    assert demo.stdout is not None
    link = next(found[1] for line in demo.stdout if (found := WATCHED.match(line)))
    with httpx.Client(follow_redirects=True, timeout=20) as person:
        page = person.get(link)

    assert page.status_code == 200, page.text
    assert "<h1>Programs</h1>" in page.text
    assert ended(demo)[0] == 0


def check_figures(report: dict[str, dict[str, dict[str, float]]]) -> None:
    round_robin, fifo = report["policies"]["rr"], report["policies"]["fifo"]
    assert round_robin["suspensions"] >= 20
    assert round_robin["identical"] == round_robin["compared"] > 0
    assert fifo["suspensions"] == 0
    assert fifo["slices"] == fifo["syscalls"] == round_robin["syscalls"]
    assert round_robin["short_wait_p90_s"] < fifo["short_wait_p90_s"]


def test_a_broken_promise_is_named_and_the_log_is_kept(start: Start, tmp_path: Path) -> None:
    # Each generation ends with its first token: none is as long as a slice.
    demo = start(tmp_path, "--core", "simulated", AIOS_SIMULATED_CORE_END_PROBABILITY="1")
    code, output, errors = ended(demo)

    assert code == 1, output
    assert "FAILED: no generation was preempted under rr" in errors
    log = Path(errors.rpartition("the kernel's log: ")[2].strip())
    assert "llm-1" in log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["kernel.log"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    demo = start(tmp_path, "--core", "simulated")
    wait_until(lambda: any((tmp_path).glob("aios-demo-*/state/kernel.json")), timeout_s=30)
    demo.send_signal(number)
    code, _, errors = ended(demo)

    assert code == 130
    assert "interrupted" in errors
    assert leftovers(tmp_path) == []
    assert processes_below(tmp_path) == []


def test_a_kernel_that_does_not_start_is_an_error_with_a_log(start: Start, tmp_path: Path) -> None:
    demo = start(tmp_path, "--core", "simulated", AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S="fast")
    code, _, errors = ended(demo)

    assert code == 2
    assert "invalid-config: llm-1 does not start" in errors
    assert "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S" in errors
    assert "the kernel's log: " in errors


def test_a_file_that_cannot_be_written_is_refused_before_anything_starts(
    start: Start, tmp_path: Path
) -> None:
    code, output, errors = ended(start(tmp_path, "--plot", "no/such/folder/chart.png"))
    assert (code, output) == (2, "")
    assert f"cannot write in {tmp_path}/no/such/folder" in errors


@pytest.mark.slow
def test_the_embedded_model_keeps_the_promises(start: Start, tmp_path: Path) -> None:
    code, output, errors = ended(start(tmp_path, "--json", "figures.json"))
    assert code == 0, output + errors
    check_figures(json.loads((tmp_path / "figures.json").read_text()))
