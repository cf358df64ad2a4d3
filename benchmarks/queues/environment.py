"""The environment of the peers: their locked versions, apart from the product's, in .aios/."""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree, which

from aios_broker.contract.errors import Unavailable

LOCK_FILE = "requirements-bench.lock"
FOLDER = Path(".aios") / "bench"
INSTALL_TIMEOUT_S = 900.0
SAID_CHARACTERS = 600
PEERS = (
    "rq",
    "celery",
    "kombu",
    "dramatiq",
    "huey",
    "saq",
    "taskiq",
    "taskiq-redis",
    "redis",
    "hiredis",
    "uvloop",
)


def peers_python(
    checkout: Path, say: Callable[[str], None], *, lock: str = LOCK_FILE, into: Path = FOLDER
) -> Path:
    """Return the Python of the peers' environment; make it where it is missing or outdated.

    Args:
        checkout: Where the lock file is.
        say: Hears what takes long.
        lock: The lock file's name.
        into: The environment's folder in the checkout.

    Raises:
        Unavailable: it cannot be made.
    """
    folder = checkout / into
    python, stamp = folder / "bin" / "python", folder / "aios-stamp"
    lock_file = checkout / lock
    wanted = f"{platform.python_version()} {hashlib.sha256(lock_file.read_bytes()).hexdigest()}\n"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another run may be making it
        if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
            say(f"installing the peers into {into} (once)")
            rmtree(folder, ignore_errors=True)
            _install(folder, python, lock_file)
            stamp.write_text(wanted)
    return python


def versions_of(python: Path, names: Sequence[str] = PEERS) -> dict[str, str]:
    """Return the peers' versions as they are installed."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    told = subprocess.run(
        [str(python), "-I", "-c", code, *names], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(told.stdout)
    return found


def _install(folder: Path, python: Path, lock_file: Path) -> None:
    options = ["--no-deps", "--require-hashes", "-r", str(lock_file)]
    uv = which("uv")
    if uv is not None:
        _run(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "--quiet", "--python", str(python), *options)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(
            str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options
        )


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-SAID_CHARACTERS:]
        raise Unavailable(
            f"the peers could not be installed: {said}",
            remedy="see whether this machine reaches its package index, and try again",
        )
