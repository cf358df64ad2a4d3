"""A whole kernel on this machine: its servers where none are named, and its processes.

    with EmbeddedKernel(config) as kernel:
        talk_to(kernel.redis_url)
        kernel.kill("llm-1")  # it comes back by itself

`run` does the same in the calling thread until `stop`: what `aios up` does.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import Unavailable, WaitTimeout
from aios_broker.contract.urls import without_password
from aios_broker.log import KernelLog
from aios_broker.postgres.database import check_database_url, sqlalchemy_url
from aios_broker.process.child import Service, wait_for
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import Role, secret_of, url_as
from aios_broker.redis.connection import parse_url
from aios_broker.scheduler.policy import policy_named
from aios_broker.tool_catalogue import tools_path
from aios_local.embedded.postgres import PostgresServer
from aios_local.embedded.redis import RedisServer, write_private
from aios_local.embedded.state import StateDir
from aios_local.supervisor.api_port import api_port
from aios_local.supervisor.cores import CoresWatch
from aios_local.supervisor.programs import (
    API,
    Fleet,
    Program,
    kernel_programs,
    reached_at,
    redis_users_program,
    services_of,
)
from aios_local.supervisor.record import (
    KernelRecord,
    KernelState,
    ProcessRecord,
    lock_kernel,
    process_metrics,
    write_record,
)
from aios_local.supervisor.redis_check import check_redis
from aios_local.supervisor.redis_users import RedisUsers, UsersWatch
from aios_local.supervisor.supervisor import Supervisor

START_TIMEOUT_S = 300.0  # first start on a slow machine: initdb, migrations, the model's probe
KV_DIR = "AIOS_LLM_KV_DIR"  # of the workers' settings
CORES_FILE = "AIOS_CORES"
HANDED_OUT: tuple[Role, ...] = ("client", "inspector")  # logins for others than our processes


class EmbeddedKernel:
    """One kernel on one state directory. Use it once."""

    def __init__(
        self,
        config: KernelConfig,
        *,
        programs: Sequence[Program] | None = None,
        log: KernelLog | None = None,
        inherited: Mapping[str, str] | None = None,
        temporary: bool = False,
    ) -> None:
        """Check the settings and place the servers; nothing is started yet.

        Args:
            config: The settings.
            programs: What to run beside the servers; None: a whole kernel.
            log: Where the lines of all processes go, closed at the end; None: to a file in the
                state directory.
            inherited: The variables that the processes get besides ours; None: this process's.
            temporary: Delete the state directory at the end.

        Raises:
            InvalidConfig: A setting that no process could work with.
            Unavailable: A server's programs are not installed.
        """
        policy_named(config.policy)
        self.config = config
        self._state = StateDir.open(config.state_dir)
        self._temporary = temporary
        self._log = log or _log_of(self._state, config)
        self._redis = self._postgres = None
        self._keys = Keys(config.key_prefix)
        if config.redis_url is None:
            self._redis = RedisServer.of(
                self._state,
                port=config.redis_port,
                max_bytes=config.redis_max_bytes,
                keys=self._keys,
            )
        else:
            parse_url(config.redis_url)
        self._own_users = config.redis_users == "own" and secret_of(self.redis_url) is not None
        if config.database_url is None:
            self._postgres = PostgresServer.of(self._state)
        else:
            check_database_url(config.database_url)
        self._inherited = environment() if inherited is None else inherited
        self._api_port = api_port(self._state.path, config.api_host, config.api_port)
        self._cores: CoresWatch | None = None
        self._cores_forgotten = False  # those that were described once
        self._programs: Sequence[Program] = programs or ()  # but for those of the file's cores
        if programs is None:
            self._cores = CoresWatch(config)
            self._programs = (*self._user_programs, *kernel_programs(config))
            programs = [*self._programs, *self._cores.programs]
        self._supervisor = Supervisor(
            self._stages(programs), self._log, self._write, self._wanted_cores
        )
        self._kernel_state: KernelState = "starting"
        self._started_at = 0.0  # Unix time, s
        self._ready = threading.Event()
        self._runner = ThreadPoolExecutor(1, "kernel-supervisor")  # used by `with` alone

    @property
    def redis_url(self) -> str:
        """The address of the kernel's Redis."""
        return self._redis.url if self._redis is not None else str(self.config.redis_url)

    @property
    def api_url(self) -> str | None:
        """The address of the HTTP API; None: it is none of the programs."""
        if all(one.name != API for one in self._programs):
            return None
        host = reached_at(self.config.api_host)
        return (
            f"http://[{host}]:{self._api_port}"
            if ":" in host
            else f"http://{host}:{self._api_port}"
        )

    @property
    def database_url(self) -> str:
        """The address of the kernel's Postgres, in SQLAlchemy's form."""
        if self._postgres is not None:
            return self._postgres.database_url()
        return sqlalchemy_url(str(self.config.database_url))

    @property
    def record(self) -> KernelRecord:
        """What `kernel.json` says at this moment."""
        return KernelRecord(
            state=self._kernel_state,
            redis_url=self.redis_url,
            database_url=self.database_url,
            api_url=self.api_url,
            redis_tcp_url=self._redis.tcp_url if self._redis is not None else None,
            pid=os.getpid(),
            started_at=self._started_at,
            state_dir=str(self._state.path),
            policy=self.config.policy,
            processes=self._supervisor.records,
            problems=self._cores.problems if self._cores is not None else (),
        )

    @property
    def _user_programs(self) -> tuple[Program, ...]:
        """What makes Redis' users; our own server has them from its file."""
        makes = self._own_users and self._redis is None
        return (redis_users_program(),) if makes else ()

    def run(self) -> None:
        """Run the kernel in this thread until `stop`.

        Raises:
            InvalidConfig: Another kernel runs on the state directory.
            Unavailable: A process does not start, or a server is in a crash loop.
        """
        with contextlib.ExitStack() as at_end:
            at_end.callback(self._log.close)
            lock = lock_kernel(self._state)
            at_end.callback(os.close, lock)
            at_end.callback(self._clear)
            self._check_redis()
            self._serve_metrics(at_end)
            self._hand_out_logins()
            if self._user_programs:
                at_end.enter_context(UsersWatch(RedisUsers(self.redis_url, self._keys)))
            self._started_at = time.time()
            self._write()
            self._say_news()
            self._supervisor.run(self._all_ready)

    def _check_redis(self) -> None:
        if self._redis is None:
            may_evict = self.config.redis_eviction == "allow"
            asyncio.run(check_redis(self.redis_url, may_evict=may_evict))

    def _say_news(self) -> None:
        for line in self._cores.take_news() if self._cores is not None else ():
            self._log.line("kernel", line)

    def _hand_out_logins(self) -> None:
        """Write the addresses for tools that look, and for clients that are part of the fleet."""
        if not self._own_users:
            return
        url = (self._redis and self._redis.tcp_url) or self.redis_url
        for role in HANDED_OUT:
            write_private(self._state.redis_login_path(role), url_as(url, role, self._keys))

    def _serve_metrics(self, at_end: contextlib.ExitStack) -> None:
        if self.config.metrics_port is None:
            return
        # Not needed otherwise: the supervisor stays small.
        from aios_broker.metrics.server import MetricsServer  # noqa: PLC0415

        host = self.config.metrics_host
        page = MetricsServer(
            self.config.metrics_port, lambda: process_metrics(self._supervisor.records), host=host
        )
        port = at_end.enter_context(page).port
        self._log.line("kernel", f"metrics: http://{host}:{port}/metrics and the next ports")

    def stop(self) -> None:
        """Ask for the end, from any thread or signal handler; a second time: without draining."""
        self._kernel_state = "stopping"
        self._supervisor.stop()

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a process by its name (`redis`, `llm-1`); return its process id."""
        return self._supervisor.signal(name, number)

    def kill(self, name: str) -> int:
        """End a process as `kill -9` does; it is started again. Return its old process id."""
        return self._supervisor.signal(name, signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Stop a process in order and start it again; returns before that has happened."""
        self._supervisor.restart(name)

    def process(self, name: str) -> ProcessRecord:
        """Return the named process as it is now."""
        found = [one for one in self._supervisor.records if one.name == name]
        if not found:
            raise Unavailable(f"no process is called {name!r}")
        return found[0]

    def wait_running(self, name: str, *, not_pid: int | None = None, timeout_s: float = 30) -> int:
        """Wait until the named process runs, as another one than `not_pid`; return its id.

        Raises:
            WaitTimeout: It did not within `timeout_s`.
        """

        def runs() -> bool:
            now = self.process(name)
            return now.state == "running" and now.pid not in (None, not_pid)

        found = wait_for(runs, timeout_s) and self.process(name).pid
        if not found:
            raise WaitTimeout(f"{name} did not run within {timeout_s:g} s")
        return found

    def __enter__(self) -> "EmbeddedKernel":
        """Start it in a thread of its own and wait until it is ready."""
        try:
            self._running = self._runner.submit(self.run)
            self._wait_ready()
        except BaseException:  # Ctrl-C too: whoever entered has nothing to leave yet
            self._leave()
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._leave()
        if error is None:
            self._running.result()

    def _wait_ready(self) -> None:
        ended = self._running.done
        if not wait_for(lambda: self._ready.is_set() or ended(), START_TIMEOUT_S):
            raise Unavailable(f"the kernel was not ready within {START_TIMEOUT_S:.0f} s")
        if ended():
            self._running.result()
            raise Unavailable("the kernel was stopped while it started")

    def _leave(self) -> None:
        self.stop()
        self._runner.shutdown()

    def _stages(self, programs: Sequence[Program]) -> list[list[Service]]:
        servers = [server.service() for server in (self._redis, self._postgres) if server]
        stages = self._services(programs)
        return [servers, *stages] if servers else stages

    def _services(self, programs: Sequence[Program]) -> list[list[Service]]:
        variables = {
            KV_DIR: str(self._state.kv_dir),  # one that was set goes before, an empty one too
            **self._inherited,
            **self.config.variables(),
            "AIOS_REDIS_URL": self.redis_url,
            "AIOS_DATABASE_URL": self.database_url,
            "AIOS_API_PORT": str(self._api_port),
            "AIOS_TOOLS": str(tools_path(self.config.state_dir, self.config.tools).absolute()),
            "PYTHONUNBUFFERED": "1",  # a process's last words before a crash are in the log
        }
        secrets: frozenset[str] = frozenset()
        if self._cores is not None:
            variables[CORES_FILE] = str(self._cores.path)
            secrets = self._cores.secrets
        return services_of(programs, variables, self._keys, secrets, own_users=self._own_users)

    def _wanted_cores(self) -> Sequence[Service] | None:
        """Return what is to run, when the file of cores has changed."""
        if self._cores is None:
            return None
        changed = self._cores.look()
        if changed or not self._cores_forgotten:
            fleet = Fleet(self.redis_url, self._keys)
            self._cores_forgotten = fleet.forget_cores(self._cores.describes)
        if not changed:
            return None
        self._say_news()
        self._write()  # its problems
        programs = [*self._programs, *self._cores.programs]
        return [service for stage in self._services(programs) for service in stage]

    def _all_ready(self) -> None:
        self._kernel_state = "running"
        self._write()
        self._ready.set()
        self._log.line("kernel", f"ready: AIOS_REDIS_URL={without_password(self.redis_url)}")
        if self.api_url is not None:
            self._log.line("kernel", f"ready: the HTTP API answers at {self.api_url}")

    def _write(self) -> None:
        write_record(self._state.record_path, self.record)

    def _clear(self) -> None:
        self._state.record_path.unlink(missing_ok=True)
        for role in HANDED_OUT:
            self._state.redis_login_path(role).unlink(missing_ok=True)
        self._state.remove_sockets()
        self._state.remove_kv()
        if self._temporary:
            if self._postgres is not None:
                self._postgres.remove()
            shutil.rmtree(self._state.path, ignore_errors=True)


def _log_of(state: StateDir, config: KernelConfig) -> KernelLog:
    return KernelLog(state.log_dir / "kernel.log", log_format=config.log_format)
