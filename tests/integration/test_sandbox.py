"""Tools in bubblewrap: what they try to get out by, and what they leave. Real processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig, SandboxUnavailable
from aios_broker.contract.tools import ToolCard
from aios_workers.modules.tool.opening import sandbox_kind
from aios_workers.modules.tool.running import Launch, ToolProgram
from aios_workers.modules.tool.sandbox import bubblewrap
from aios_workers.modules.tool.sandbox.bubblewrap import (
    Bubblewrap,
    chosen_sandbox,
    open_bubblewrap,
)
from aios_workers.modules.tool.sandbox.seccomp import ARCHITECTURES

NOBODY = 65534
LIMIT_S = 60
TOLD = {"PATH": os.defpath, "NAMED": "yes"}
HELP = """
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def refused(*numbers_and_arguments):
    ctypes.set_errno(0)
    back = libc.syscall(*(ctypes.c_long(each) for each in numbers_and_arguments))
    return back == -1 and errno.errorcode.get(ctypes.get_errno())

def reads(path):
    try:
        with open(path, "rb") as file:
            return file.read(10_000_000)
    except OSError:
        return None

def writes(path):
    try:
        with open(path, "wb") as file:
            file.write(b"x")
        return True
    except OSError:
        return False
"""


@pytest.fixture(scope="module")
def sandbox() -> Bubblewrap:
    try:
        return open_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(f"{error.message}: what it keeps in was not tried")


@pytest.fixture(params=["own", "ordinary"])
def user(request: pytest.FixtureRequest) -> int | None:
    """Whose process it is: None: ours (root, in a container)."""
    if request.param == "own":
        return None
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    return NOBODY


@pytest.fixture
def workspace(user: int | None) -> Iterator[Path]:
    """A folder that this user can work in, and reach."""
    folder = Path(tempfile.mkdtemp(prefix="aios-sandbox-"))
    try:
        if user is not None:
            os.chown(folder, user, user)
        yield folder
    finally:
        shutil.rmtree(folder)


def tried(
    sandbox: Bubblewrap, workspace: Path, user: int | None, code: str, *readable: Path
) -> str:
    """Run code in the sandbox, and return what it prints."""
    python = sys.executable if user is None else python_of_all()
    program = ToolProgram(ToolCard(name="me/tries"), "a:b", Path(python), ())
    command = (python, "-I", "-c", HELP + textwrap.dedent(code))
    launch = sandbox.confined(
        program, Launch(command, TOLD, workspace, (Path(python).parent.parent, *readable))
    )
    try:
        done = subprocess.run(
            launch.command,
            pass_fds=launch.descriptors,
            env=dict(launch.environ),
            cwd=workspace,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    finally:
        for each in launch.descriptors:
            os.close(each)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def python_of_all() -> str:
    """Return an interpreter that each user can run."""
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if found is None:
        pytest.skip("no Python here that another user can run")
    return found


def test_it_sees_its_workspace_and_programs_and_nothing_else(
    sandbox: Bubblewrap, workspace: Path, user: int | None
) -> None:
    given = Path(tempfile.mkdtemp(prefix="aios-given-"))
    given.chmod(0o755)
    (given / "given.txt").write_text("mine")
    (workspace / "on_disk.txt").write_text("of the worker")
    code = f"""
    secret = ["/etc/shadow", "/etc/passwd", "/root/.bashrc", "/var/log/dpkg.log", "/sys/kernel",
              {str(Path(__file__))!r}, "/proc/kcore", "/proc/{os.getpid()}/environ", "/dev/sda"]
    print([path for path in secret if reads(path) is not None or os.path.isdir(path)])
    print(reads({str(given / "given.txt")!r}), os.listdir(), sorted(os.listdir("/")))
    """
    try:
        lines = tried(sandbox, workspace, user, code, given).splitlines()
    finally:
        shutil.rmtree(given)
    assert lines[0] == "[]"
    assert lines[1].startswith("b'mine' [] ")
    assert not {"'root'", "'home'", "'var'", "'sys'", "'run'"} & set(lines[1].split())


def test_it_writes_to_its_workspace_alone(
    sandbox: Bubblewrap, workspace: Path, user: int | None
) -> None:
    code = """
    places = ["/made", "/usr/made", "/etc/made", "/dev/made", "/proc/sys/kernel/core_pattern",
              "/proc/sysrq-trigger", "/proc/sys/kernel/hostname", "/proc/self/made"]
    print([path for path in places if writes(path)], writes("made"), writes("/tmp/made"))
    """
    assert tried(sandbox, workspace, user, code) == "[] True True"
    assert os.listdir(workspace) == []  # it lay in memory, and went with it
    assert not Path("/tmp/made").exists()
    # Of /proc nothing can be written to but what is the process's own (and /dev/null in its place).
    code = """
    opened = []
    for folder, folders, names in os.walk("/proc"):
        folders[:] = [each for each in folders if folder != "/proc" or not each.isdigit()]
        for name in names:
            path = os.path.join(folder, name)
            kind = os.lstat(path).st_mode >> 12  # 8: a file
            if kind == 8 and os.access(path, os.W_OK):
                opened.append(path)
    print(opened)
    """
    assert tried(sandbox, workspace, user, code) == "[]"


def test_it_has_no_network_and_reaches_no_socket_of_this_machine(
    sandbox: Bubblewrap, workspace: Path, user: int | None
) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        server.listen()
        name = f"\0aios-sandbox-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        code = f"""
        def connects(family, address):
            try:
                with socket.socket(family, socket.SOCK_STREAM) as one:
                    one.settimeout(2)
                    one.connect(address)
                return True
            except OSError as error:
                return errno.errorcode[error.errno]

        print(connects(socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})))
        print(connects(socket.AF_INET, ("1.1.1.1", 53)))
        print(connects(socket.AF_UNIX, {name!r}))
        for family in (socket.AF_VSOCK, socket.AF_PACKET, socket.AF_ALG):
            try:
                socket.socket(family, socket.SOCK_RAW)
                print("opened")
            except OSError as error:
                print(errno.errorcode[error.errno])
        """
        lines = tried(sandbox, workspace, user, code).splitlines()
    assert lines == ["ECONNREFUSED", "ENETUNREACH", "ECONNREFUSED", *["EAFNOSUPPORT"] * 3]


def test_it_sees_no_processes_but_its_own_and_inherits_nothing(
    sandbox: Bubblewrap, workspace: Path, user: int | None
) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    try:
        code = """
        print(len([each for each in os.listdir("/proc") if each.isdigit()]) <= 3)
        print(sorted(os.environ), reads("/proc/1/environ"))
        print(sorted(int(each) for each in os.listdir("/proc/self/fd"))[:4])
        print(os.getuid(), os.getgid(), os.getgroups() in ([], [65534]), os.uname().nodename)
        names = ("CapEff", "NoNewP")
        print([line.split()[1] for line in open("/proc/self/status") if line[:6] in names])
        """
        lines = tried(sandbox, workspace, user, code).splitlines()
    finally:
        os.close(read_end)
        os.close(write_end)
    assert lines[0] == "True"
    names, environ = lines[1].rsplit("]", 1)
    assert set(names.strip("[").replace("'", "").split(", ")) <= {
        "LC_CTYPE",
        "NAMED",
        "PATH",
        "PWD",
    }
    assert environ.strip() in ("b''", "None")
    assert lines[2] == "[0, 1, 2, 3]"  # the last is the folder that is read
    assert lines[3] == "65534 65534 True sandbox"
    assert lines[4] == "['0000000000000000', '1']"


def test_what_reaches_beyond_namespaces_is_refused(
    sandbox: Bubblewrap, workspace: Path, user: int | None
) -> None:
    here = ARCHITECTURES[os.uname().machine]
    code = f"""
    denied = {dict(here.denied)!r}
    print({{name: refused(number, 0, 0, 0, 0, 0) for name, number in denied.items()
           if refused(number, 0, 0, 0, 0, 0) != "EPERM"}})
    print(refused({here.clone}, 0x10000000, 0, 0, 0, 0), refused(435, 0, 0))
    print(refused({here.ioctl}, 0, 0x5412, 0))
    """
    lines = tried(sandbox, workspace, user, code).splitlines()
    assert lines == ["{}", "EPERM ENOSYS", "EPERM"]


def test_what_begins_with_a_dot_or_is_hidden_is_not_seen_where_modules_are_read(
    sandbox: Bubblewrap, tmp_path: Path
) -> None:
    modules = tmp_path / "project"
    (modules / ".ssh").mkdir(parents=True)
    (modules / ".ssh" / "key").write_text("secret")
    (modules / ".env").write_text("secret")
    (modules / "state").mkdir()
    (modules / "state" / "audit.key").write_text("secret")
    (modules / "code.py").write_text("open")
    code = f"""
    print([reads({str(modules)!r} + "/" + path) for path in
          (".ssh/key", ".env", "state/audit.key", "code.py")], writes({str(modules / "made")!r}))
    """
    elsewhere = tmp_path / "work"
    elsewhere.mkdir()
    hides = replace(sandbox, hidden=(modules / "state",))
    found = tried(hides, elsewhere, None, code, modules)
    assert found == "[None, None, None, b'open'] False"


def test_an_operator_may_go_without() -> None:
    assert chosen_sandbox(sandbox_kind({"AIOS_TOOL_SANDBOX": "none"})).kind == "none"
    assert sandbox_kind({}) == "bubblewrap"
    with pytest.raises(InvalidConfig, match="no sandbox 'docker'"):
        sandbox_kind({"AIOS_TOOL_SANDBOX": "docker"})


def test_one_that_does_not_start_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "bwrap_path", lambda: Path("/bin/false"))
    found = chosen_sandbox("bubblewrap")
    assert found.kind == "none"
    assert "exit code 1" in found.warnings[0]


def test_an_architecture_without_a_filter_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    found = chosen_sandbox("bubblewrap")
    assert found.kind == "none"
    assert "no sandbox on this machine" in found.warnings[0]
