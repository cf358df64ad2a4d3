"""Postgres with pgvector on a private unix socket, initialised on first use."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg

from aios_broker.contract.errors import Unavailable
from aios_broker.process.child import SHIM, Identity, Service
from aios_local.embedded.install import (
    PostgresInstall,
    data_dir_for_nobody,
    find_postgres,
    give_to_nobody,
    install_for_nobody,
    postgres_identity,
    socket_dir_for_nobody,
)
from aios_local.embedded.state import OWNER_ONLY, StateDir

ANSWER_TIMEOUT_S = 2
STATUS_LINE = 7  # of postmaster.pid, counted from 0; see src/include/utils/pidfile.h
INIT_TIMEOUT_S = 120.0
PORT = 5432  # only part of the socket's name; said in each URL, since PGPORT may say another
USER = "postgres"
DATABASE = "aios"
# Nothing of the user's environment: PGDATA, PGPORT and their like would change the server.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
# For tests: a crash of the machine, not of the process, may lose the data.
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


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

    def libpq_url(self, database: str = DATABASE) -> str:
        """Return the address that psql and psycopg read."""
        return f"postgresql://{USER}@/{database}?host={self.socket_dir}&port={PORT}"

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
        except (OSError, IndexError):
            return False
        if status.strip() != "ready":
            return False
        try:
            with psycopg.connect(self.libpq_url(), connect_timeout=ANSWER_TIMEOUT_S):
                return True
        except psycopg.OperationalError:
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
            *(self.install.program("initdb"), "-D", str(building), "-U", USER, "--auth=trust"),
            # Postgres's own C.UTF-8: the same on every machine, whatever locales it has.
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--locale=C", *(() if self.durable else ("--no-sync",))),
        )
        self._run(
            *(self.install.program("postgres"), "--single", "-D", str(building), "postgres"),
            statements=f"CREATE DATABASE {DATABASE}\n",
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
        shim = (sys.executable, "-I", "-S", str(SHIM), str(os.getpid()), str(int(signal.SIGKILL)))
        done = subprocess.run(
            [*shim, self.identity, *command],
            env=ENVIRONMENT,
            input=statements,
            capture_output=True,
            text=True,
            timeout=INIT_TIMEOUT_S,
            check=False,
        )
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
