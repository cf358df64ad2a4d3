"""`aios cores pull` as it is typed: in a process of its own, with the hub's own variables."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_broker.catalogue import read_catalogue
from aios_broker.contract.cores import LlamaSettings
from tests.gguf_files import write_model
from tests.hub_standin import HubStandIn, Repo, cut_after, hold_until, sha256

LIMIT_S = 50.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[HubStandIn]:
    hub = HubStandIn()
    hub.repos["org/repo"] = Repo({"q4/Tiny-Q4.gguf": model})
    hub.files["tiny.gguf"] = model
    with hub.running():
        yield hub


class Machine:
    """A state directory, and the command in it."""

    def __init__(self, hub: HubStandIn, state_dir: Path) -> None:
        self.state_dir = state_dir
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
        self.environ = {
            **kept,
            "AIOS_STATE_DIR": str(state_dir),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(state_dir / "hf"),
            "HF_TOKEN": "",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "aios_cli", "cores", "pull", *arguments]

    def pull(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def core(self, name: str) -> LlamaSettings:
        core = read_catalogue(self.state_dir / "cores.toml").checked()[name]
        assert isinstance(core, LlamaSettings)
        return core

    def bytes_here(self) -> list[Path]:
        return list(self.state_dir.rglob("*.gguf")) + list(self.state_dir.rglob(".*.part"))


@pytest.fixture
def machine(hub: HubStandIn, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path / "state")


def test_a_file_of_the_hub_becomes_a_core(hub: HubStandIn, machine: Machine, model: bytes) -> None:
    done = machine.pull(
        "hf:org/repo/q4/Tiny-Q4.gguf", "--yes", "--alias", "small", "--slots", "3", "--default"
    )

    assert done.returncode == 0, done.stderr
    path = machine.state_dir / "models" / "org" / "repo" / "q4" / "Tiny-Q4.gguf"
    assert path.read_bytes() == model
    core = machine.core("tiny-q4")
    assert (core.gguf, core.aliases, core.slots, core.default) == (str(path), ("small",), 3, True)
    for said in ("apache-2.0", sha256(model), str(path), "tiny-q4", "at 0123456789ab"):
        assert said in done.stderr
    assert "core tiny-q4 runs it" in done.stdout
    assert not any(path.startswith("/api/telemetry") for _, path, _ in hub.asked)


def test_run_again_it_finds_all_in_place(hub: HubStandIn, machine: Machine) -> None:
    assert machine.pull("hf:org/repo/q4/Tiny-Q4.gguf", "--yes").returncode == 0
    asked = len(hub.bytes_asked())

    again = machine.pull("hf:org/repo/q4/Tiny-Q4.gguf", "--yes", "--json")

    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["new"] is False
    assert len(hub.bytes_asked()) == asked


def test_a_plain_address_with_its_sum(hub: HubStandIn, machine: Machine, model: bytes) -> None:
    address = f"{hub.url}/files/tiny.gguf"

    wrong = machine.pull(address, "--yes", "--name", "mine", "--sha256", "0" * 64)
    assert wrong.returncode == 1
    assert "it was removed" in wrong.stderr
    assert machine.bytes_here() == []

    right = machine.pull(address, "--yes", "--name", "mine", "--sha256", sha256(model).upper())
    assert right.returncode == 0, right.stderr
    assert machine.core("mine").gguf == str(machine.state_dir / "models/127.0.0.1/tiny.gguf")


def test_nothing_is_downloaded_before_somebody_has_said_yes(
    hub: HubStandIn, machine: Machine
) -> None:
    done = machine.pull("hf:org/repo/q4/Tiny-Q4.gguf")

    assert done.returncode == 2
    assert "give --yes" in done.stderr
    assert "apache-2.0" in done.stderr
    assert hub.bytes_asked() == []
    assert machine.bytes_here() == []


@pytest.mark.parametrize(("typed", "exit_code", "pulled"), [(b"n\n", 1, 0), (b"y\n", 0, 1)])
def test_at_a_terminal_it_asks(
    typed: bytes, exit_code: int, pulled: int, hub: HubStandIn, machine: Machine
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        machine.command("hf:org/repo/q4/Tiny-Q4.gguf"),
        env=machine.environ,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        os.write(ours, typed)
        _, said = process.communicate(timeout=LIMIT_S)
    os.close(ours)

    assert b"Download it?" in said
    assert process.returncode == exit_code, said
    assert len(hub.bytes_asked()) == pulled


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("hf:a/b/../../x.gguf",), 2, "cannot be a file's"),
        (("hf:org/repo/q4/Tiny-Q8.gguf",), 4, "it has q4/Tiny-Q4.gguf"),
        (("hf:org/other/m.gguf",), 4, "HF_TOKEN"),
        (("hf:org/repo/q4/Tiny-Q4.gguf", "--revision", "v9"), 4, "--revision"),
        (("hf:org/repo/q4/Tiny-Q4.gguf", "--sha256", "1" * 64), 2, "the hub's checksum"),
        (("hf:org/repo/q4/Tiny-Q4.gguf", "--sha256", "12"), 2, "64 hex digits"),
        (("hf:org/repo/q4/Tiny-Q4.gguf", "--name", "a b"), 2, "cores.a b"),
        (("hf:org/repo/q4/Tiny-Q4.gguf", "--alias", "tiny-q4"), 2, "own name"),
        (("hf:org/repo/q4/Tiny-Q4.gguf", "--fallback", "nobody"), 2, "no such core"),
    ],
)
def test_what_will_not_do_is_refused_before_anything_comes(
    arguments: tuple[str, ...], exit_code: int, said: str, hub: HubStandIn, machine: Machine
) -> None:
    done = machine.pull(*arguments, "--yes")

    assert (done.returncode, said in done.stderr) == (exit_code, True), done.stderr
    assert hub.bytes_asked() == []
    assert machine.bytes_here() == []
    assert not (machine.state_dir / "cores.toml").exists()


def test_a_name_that_is_another_cores_is_refused_before_anything_comes(
    hub: HubStandIn, machine: Machine
) -> None:
    machine.state_dir.mkdir()
    (machine.state_dir / "cores.toml").write_text('[cores.taken]\nkind = "simulated"\n')

    done = machine.pull("hf:org/repo/q4/Tiny-Q4.gguf", "--name", "taken", "--yes")

    assert done.returncode == 2
    assert "cores.taken" in done.stderr
    assert hub.bytes_asked() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_the_same_command_goes_on(
    number: signal.Signals, hub: HubStandIn, machine: Machine, model: bytes
) -> None:
    go_on = threading.Event()
    cut = len(model) // 2
    hub.faults = [hold_until(go_on, cut)]
    part = machine.state_dir / "models/org/repo/q4/.Tiny-Q4.gguf.part"
    with subprocess.Popen(
        machine.command("hf:org/repo/q4/Tiny-Q4.gguf", "--yes"),
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if part.exists() and part.stat().st_size > cut // 2 and ": " in line:
                break
        process.send_signal(number)
        said = process.stderr.read()
        process.wait(LIMIT_S)
    go_on.set()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "what has come is kept" in said
    kept = part.stat().st_size
    assert kept > 0

    done = machine.pull("hf:org/repo/q4/Tiny-Q4.gguf", "--yes")

    assert done.returncode == 0, done.stderr
    assert hub.bytes_asked()[-1] == f"bytes={kept}-"
    assert Path(str(machine.core("tiny-q4").gguf)).read_bytes() == model


def test_another_folder_of_models(hub: HubStandIn, machine: Machine, tmp_path: Path) -> None:
    machine.environ["AIOS_MODELS"] = str(tmp_path / "large disk")
    hub.faults = [cut_after(1_000)]

    assert machine.pull("hf:org/repo/q4/Tiny-Q4.gguf", "--yes").returncode == 0

    assert (tmp_path / "large disk/org/repo/q4/Tiny-Q4.gguf").is_file()


def test_help_imports_no_client_of_the_hub() -> None:
    look = "import sys; from aios_cli.main import cli; import aios_cli.cores; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", look], capture_output=True, text=True, check=True
    )
    assert not {"huggingface_hub", "httpx"} & set(done.stdout.split())
