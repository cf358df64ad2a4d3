"""As whom Postgres runs: it refuses to run as root, and root is what a container's user often is.

An ordinary user runs it as is. Root runs it inside a user namespace, where it is still root for
the files and looks like `nobody` to Postgres. Where the machine refuses namespaces (Docker's
default profile does), it runs as the real user `nobody`, who must be able to reach the programs
and the data: both are then moved to where he can.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from aios_broker.contract.errors import Unavailable
from aios_broker.embedded.binaries import PostgresInstall
from aios_broker.embedded.child import SHIM, Identity
from aios_broker.embedded.shim import NOBODY_ID

PROBE_TIMEOUT_S = 10.0


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
    digest = hashlib.sha256(os.fsencode(install.prefix)).hexdigest()[:12]
    home = Path(_open_temporary_dir()) / f"aios-postgres-{digest}"
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
        raise Unavailable(
            f"{home} was not made by this user", remedy=f"remove it: rm -r {home}"
        )
    return PostgresInstall(copied, home / package.name, home / f"{package.name}.libs")


def data_dir_for_nobody(wanted: Path) -> Path:
    """Return where `nobody` can keep data: below `wanted` if he can get there, else elsewhere."""
    if nobody_can_enter(wanted.parent):
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    return Path("/var/tmp") / f"aios-data-{digest}"


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
