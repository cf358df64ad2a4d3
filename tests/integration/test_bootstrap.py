"""`./aios` sets a checkout up once, says what it does, and recovers from whatever cut it short.

The script is the real one; `uv` is a stand-in that makes an environment without a network and
writes down how it was called.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 50.0
COPIED = ("aios", "requirements.lock", "requirements-models.lock", "pyproject.toml")

STAND_IN_UV = """#!/bin/sh
echo "$*" >>"$UV_CALLS"
case $1 in
venv)
    for place; do :; done
    exec "$REAL_PYTHON" -I -m venv --without-pip "$place"
    ;;
pip)
    [ ! -e "$UV_CALLS.hang" ] || sleep 60
    site=$("$5" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/aios_cli"
    : >"$site/aios_cli/__init__.py"
    echo 'import os, sys; print(os.getcwd(), sys.argv[1:])' >"$site/aios_cli/__main__.py"
    ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A copy of the script in a folder with a space, and a PATH on which we know what lies."""

    folder: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def checkout(self) -> Path:
        """Where the script and the lock files lie."""
        return self.folder / "my checkout"

    @property
    def environment(self) -> Mapping[str, str]:
        """All that the script sees of the outside."""
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "UV_CALLS": str(self.folder / "calls"),
            "REAL_PYTHON": sys.executable,
            "AIOS_PYTHON": sys.executable,
            **self.more,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the script in a process group of its own, in a directory that is not its own."""
        return subprocess.Popen(
            [str(self.checkout / "aios"), *arguments],
            cwd="/",
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run the script to its end: exit code, standard output, standard error."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=LIMIT_S)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """What `uv` was asked for so far."""
        path = self.folder / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with a stand-in uv, on which the script never ran."""
    machine = Machine(tmp_path)
    machine.checkout.mkdir()
    for name in COPIED:
        shutil.copy(ROOT / name, machine.checkout / name)
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text(STAND_IN_UV)
    uv.chmod(0o755)
    return machine


def test_the_first_run_sets_up_and_says_so_and_the_second_goes_straight_to_the_cli(
    machine: Machine,
) -> None:
    code, out, err = machine.run("status", "two words")

    assert (code, out) == (0, "/ ['status', 'two words']\n"), err
    assert [line for line in ("[1/4]", "[2/4]", "[3/4]", "[4/4]", "ready") if line not in err] == []
    assert len(machine.calls()) == 4
    for call in machine.calls()[1:3]:  # nothing is built, and nothing is run, of what is fetched
        assert "--require-hashes --only-binary :all:" in call

    assert machine.run("status") == (0, "/ ['status']\n", "")
    assert len(machine.calls()) == 4


def test_a_program_and_what_a_checkout_has_beside_the_cli_run_in_the_environment(
    machine: Machine,
) -> None:
    program = machine.folder / "program.py"
    program.write_text("import sys, beside; print(sys.argv[1:], beside.__name__, sys.prefix)")
    (machine.folder / "beside.py").touch()
    (machine.checkout / "benchmarks").mkdir()
    (machine.checkout / "benchmarks" / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    machine.run()

    assert machine.run("python", str(program), "two words") == (
        0,
        f"['two words'] beside {machine.checkout}/.aios/venv\n",
        "",
    )
    assert machine.run("bench", "queues", "two words") == (0, "['queues', 'two words']\n", "")
    assert "python " in machine.run("--help")[1]


def test_a_symlink_to_the_script_finds_its_checkout(machine: Machine) -> None:
    machine.run()
    link = machine.folder / "link"
    link.symlink_to(machine.checkout / "aios")

    done = subprocess.run(
        [str(link), "ps"], env=dict(machine.environment), cwd="/", capture_output=True, text=True
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "/ ['ps']\n", "")


def test_a_changed_lock_file_is_installed_without_making_the_environment_anew(
    machine: Machine,
) -> None:
    machine.run()
    with (machine.checkout / "requirements.lock").open("a") as lock:
        lock.write("# another version\n")

    code, _, err = machine.run()

    assert code == 0
    assert "updating" in err
    assert [call.split()[0] for call in machine.calls()] == ["venv", *["pip"] * 6]


def test_a_moved_checkout_is_set_up_anew(machine: Machine) -> None:
    machine.run()
    moved = Machine(machine.folder / "elsewhere", {"PATH": machine.environment["PATH"]})
    moved.folder.mkdir()
    machine.checkout.rename(moved.checkout)

    code, _, err = moved.run()

    assert code == 0
    assert "creating" in err


def test_two_at_the_same_time_set_up_once(machine: Machine) -> None:
    hang = machine.folder / "calls.hang"
    hang.touch()
    first = machine.start("first")
    wait_until(lambda: len(machine.calls()) == 2, timeout_s=LIMIT_S)
    second = machine.start("second")
    assert second.stderr is not None
    assert "another ./aios is setting up" in second.stderr.readline()

    # The first dies with all its children; nobody has to break its lock.
    os.killpg(first.pid, signal.SIGKILL)
    hang.unlink()
    first.communicate(timeout=LIMIT_S)
    out, err = second.communicate(timeout=LIMIT_S)

    assert (second.returncode, out) == (0, "/ ['second']\n"), err
    assert [call.split()[0] for call in machine.calls()] == ["venv", "pip", "venv", *["pip"] * 3]


def test_without_a_home_the_caches_go_beside_the_state(tmp_path: Path, machine: Machine) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.write_text(STAND_IN_UV.replace('"$*" >>', '"$* cache=$UV_CACHE_DIR" >>'))
    homeless = Machine(tmp_path, {"HOME": "/nonexistent"})

    code, _, err = homeless.run()

    assert code == 0, err
    assert f"cache={machine.checkout}/.aios/cache/uv" in machine.calls()[0]


def test_a_python_that_does_not_do_is_named_with_the_remedy(machine: Machine) -> None:
    code, _, err = Machine(machine.folder, {"AIOS_PYTHON": "/bin/false"}).run()

    assert code == 1
    assert "AIOS_PYTHON=/bin/false" in err
    assert machine.calls() == []


def test_a_machine_without_a_new_python_hears_what_was_found(machine: Machine) -> None:
    tools = machine.folder / "tools"
    tools.mkdir()
    for name in ("cat", "cksum", "readlink", "sh"):
        (tools / name).symlink_to(shutil.which(name) or name)
    old = tools / "python3"
    old.write_text("#!/bin/sh\necho 3.9.2\n")
    old.chmod(0o755)

    code, _, err = Machine(machine.folder, {"PATH": str(tools), "AIOS_PYTHON": ""}).run()

    assert code == 1
    assert "needs Python 3.11 or newer" in err
    assert "python3 is 3.9.2" in err


def test_a_python_without_ensurepip_is_answered_with_the_package_to_install(
    machine: Machine,
) -> None:
    (machine.folder / "bin" / "uv").unlink()
    bare = machine.folder / "bin" / "bare-python"
    bare.write_text(
        f"""#!/bin/sh
        case "$*" in *ensurepip*) exit 1 ;; *sys.executable*) echo "$0"; exit ;; esac
        exec {sys.executable} "$@"
        """
    )
    bare.chmod(0o755)

    code, _, err = Machine(machine.folder, {"AIOS_PYTHON": str(bare)}).run()

    assert code == 1
    assert f"apt install python{sys.version_info.major}.{sys.version_info.minor}-venv" in err
    assert not (machine.checkout / ".aios" / "venv").exists()
