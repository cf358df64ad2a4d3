"""The processes of a kernel as data: which programs, in which order, how often, how they stop."""

import asyncio
import http.client
import importlib.util
import re
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import hiredis

from aios_broker.config import KernelConfig
from aios_broker.contract.cores import (
    Core,
    CoreCard,
    SGLangSettings,
    key_variable,
    process_version,
)
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.contract.syscall import STATE_MODULES
from aios_broker.process.child import Service, always_ready
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import Role, url_as
from aios_broker.redis.connection import Connection

DRAIN_TIMEOUT_S = 10.0  # a worker suspends its generations and lets short jobs end
READY_TIMEOUT_S = 120.0  # the database is migrated, the model is loaded and tried out
LOAD_TIMEOUT_S = 86_400.0  # of cores with limits of their own: weights may be tens of gigabytes
WORKERS_STAGE = 2
API = "api"  # the one program of its kind: kernel.json has its address
SGLANG_KEY = "AIOS_SGLANG_API_KEY"  # of the core that the environment describes
# For whom models are fetched: no keys of cores, unless an entry names one of them.
HUB_TOKENS = frozenset(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
# What holds a secret by its name. libpq and the kernel's own settings are for all processes.
SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_?[0-9]+)?\Z", re.I)
OTEL_PREFIX = "OTEL_"
REDIS_URL = "AIOS_REDIS_URL"
OTLP_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
NO_SECRET = re.compile(r"(?:AIOS_.*|RQ_.*|PGPASSWORD)\Z")
ANSWER_TIMEOUT_S = 1.0
# A program and not a thread of the supervisor: SQLAlchemy and Alembic leave no memory behind.
MIGRATE = (
    "import os; from aios_broker.postgres.migrate import upgrade; "
    "upgrade(os.environ['AIOS_DATABASE_URL'])"
)


# How it is seen that a program does its work:
#     at once     it cannot be asked
#     leading     some scheduler leads: this one, or it stands by for another
#     registered  the process stands in RQ's list of workers
#     answering   it answers by HTTP
Ready = Literal["at once", "leading", "registered", "answering"]


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the kernel, run `count` times at once."""

    name: str
    command: tuple[str, ...]
    stage: int  # those of a stage start together, when the stage before is ready
    count: int = 1
    ready: Ready = "at once"
    one_shot: bool = False
    needed: bool = True  # else the kernel is ready without it
    version: str = ""  # of what it does
    secret: str | None = None  # the one variable with a key that it gets
    fetches: bool = False  # models from a hub
    redis_user: Role | None = None  # whom it logs in as; None: as the kernel was told
    # It reads the ledger alone: it gets the variables of OpenTelemetry, perhaps with a key in them,
    # and no way to Redis.
    traces: bool = False
    ready_timeout_s: float = READY_TIMEOUT_S

    @property
    def process_names(self) -> list[str]:
        """The names of its processes; those of workers are always numbered."""
        if self.count == 1 and self.ready != "registered":
            return [self.name]
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]


def kernel_programs(config: KernelConfig) -> tuple[Program, ...]:
    """Return the programs of a whole kernel, servers not included."""
    python = sys.executable
    worker = (python, "-m", "aios_workers")
    return (
        Program("migrate", (python, "-c", MIGRATE), stage=0, one_shot=True),
        Program(
            "scheduler",
            (python, "-m", "aios_broker.scheduler"),
            stage=1,
            count=config.schedulers,
            ready="leading",
            redis_user="scheduler",
        ),
        Program(
            "llm",
            (*worker, "llm"),
            stage=WORKERS_STAGE,
            count=config.llm_workers,
            ready="registered",
            redis_user="worker",
            secret=SGLANG_KEY,
            fetches=config.llm_core == "sglang",
            ready_timeout_s=LOAD_TIMEOUT_S if config.llm_core == "sglang" else READY_TIMEOUT_S,
        ),
        Program(
            "tool",
            (*worker, "tool"),
            stage=WORKERS_STAGE,
            count=config.tool_workers,
            ready="registered",
            redis_user="worker",
        ),
        Program(
            "state",
            (*worker, *STATE_MODULES),
            stage=WORKERS_STAGE,
            count=config.state_workers,
            ready="registered",
            redis_user="worker",
        ),
        Program(
            API,
            (python, "-m", "aios_kernel_api"),
            stage=WORKERS_STAGE,
            ready="answering",
            redis_user="api",
        ),
        *(() if config.otel_endpoint is None else (traces_program(),)),
    )


def traces_program() -> Program:
    """Return the program that tells the ledger in traces.

    Raises:
        InvalidConfig: what it needs is not installed.
    """
    if not _is_installed(OTLP_PACKAGE):
        raise InvalidConfig(
            "traces need OpenTelemetry, which is not installed",
            field="AIOS_OTEL_ENDPOINT",
            remedy="install 'aios-broker[otel]', or unset it",
        )
    return Program(
        "traces",
        (sys.executable, "-m", "aios_broker.traces"),
        stage=WORKERS_STAGE,
        traces=True,
    )


def redis_users_program() -> Program:
    """Return the program that makes Redis' users at a server that is not ours."""
    command = (sys.executable, "-m", "aios_local.supervisor.redis_users")
    return Program("redis-users", command, stage=0, one_shot=True)


def core_programs(cores: Mapping[str, Core]) -> tuple[Program, ...]:
    """Return the workers of the cores of a file: as many of each as it says."""
    return tuple(
        Program(
            f"llm.{name}",
            (sys.executable, "-m", "aios_workers", "llm", "--core", name),
            stage=WORKERS_STAGE,
            count=core.workers,
            ready="registered",
            redis_user="worker",
            needed=False,
            version=process_version(core),
            secret=key_variable(core),
            fetches=isinstance(core, SGLangSettings),
            ready_timeout_s=LOAD_TIMEOUT_S,
        )
        for name, core in cores.items()
    )


def services_of(
    programs: Sequence[Program],
    environment: Mapping[str, str],
    keys: Keys,
    secrets: Collection[str] = (),
    *,
    own_users: bool = False,
) -> list[list[Service]]:
    """Return the stages of services that the programs are run as.

    Args:
        programs: In any order; sorted by stage here.
        environment: All variables of the processes, the servers' addresses included.
        keys: Where workers register.
        secrets: Variables that hold keys: a process gets the one that its program names. What by
            its name holds a secret goes to nobody else, either: an entry may come to name it.
        own_users: Redis has a user for each kind of process, whom it logs in as.
    """
    stages: dict[int, list[Service]] = {}
    redis_url = environment["AIOS_REDIS_URL"]
    fleet = Fleet(redis_url, keys)
    is_ready: dict[Ready, Callable[[int], bool]] = {
        "at once": always_ready,
        "leading": fleet.is_led,
        "registered": fleet.has_worker,
        "answering": lambda _pid: answers_http(environment),
    }
    for program in sorted(programs, key=lambda program: program.stage):
        login = {}
        if own_users and program.redis_user is not None:
            login["AIOS_REDIS_URL"] = url_as(redis_url, program.redis_user, keys)
        stages.setdefault(program.stage, []).extend(
            Service(
                name=name,
                command=program.command,
                environment={
                    variable: value
                    for variable, value in {**environment, **login}.items()
                    if _is_given(variable, program, secrets)
                },
                stop_timeout_s=DRAIN_TIMEOUT_S,
                one_shot=program.one_shot,
                ready_timeout_s=program.ready_timeout_s,
                is_ready=is_ready[program.ready],
                needed=program.needed,
                version=program.version,
            )
            for name in program.process_names
        )
    return list(stages.values())


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


def answers_http(environment: Mapping[str, str]) -> bool:
    """Tell whether the API that was started in this environment answers."""
    host, port = environment["AIOS_API_HOST"], int(environment["AIOS_API_PORT"])
    asking = http.client.HTTPConnection(reached_at(host), port, timeout=ANSWER_TIMEOUT_S)
    try:
        asking.request("GET", "/healthz")
        return asking.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asking.close()


def reached_at(host: str) -> str:
    """Return where what listens on a host is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _is_given(variable: str, program: Program, secrets: Collection[str]) -> bool:
    if variable == program.secret:
        return True
    if variable in secrets:
        return False
    if variable in HUB_TOKENS:
        return program.fetches
    if variable.startswith(OTEL_PREFIX):
        return program.traces
    if variable.startswith(REDIS_URL):
        return not program.traces
    return bool(NO_SECRET.match(variable)) or not SECRET.search(variable)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What Redis says of the kernel's processes."""

    redis_url: str
    keys: Keys

    def has_worker(self, pid: int) -> bool:
        """Tell whether the process stands in RQ's list of workers."""

        async def has_worker(redis: Connection) -> bool:
            workers = await redis.execute("SMEMBERS", self.keys.workers)
            pids = [await redis.execute("HGET", worker, "pid") for worker in workers]
            return str(pid).encode() in pids

        return self._tell(has_worker)

    def is_led(self, _pid: int) -> bool:
        """Tell whether a scheduler leads now."""

        async def is_led(redis: Connection) -> bool:
            until_ms = await redis.execute("HGET", self.keys.own("scheduler"), "until")
            seconds, _ = await redis.execute("TIME")
            return until_ms is not None and int(until_ms) / 1000 > int(seconds)

        return self._tell(is_led)

    def forget_cores(self, is_described: Callable[[CoreCard], bool]) -> bool:
        """Take away the cores that nobody describes any more; return whether none is left.

        One whose worker has not left yet stays.
        """

        async def forget(redis: Connection) -> bool:
            control = Control(Functions(redis), self.keys)
            gone = [one for one in await control.cores() if not is_described(one.card)]
            for one in gone:
                if one.slots is None:
                    await control.remove_core(one.card.name)
            return all(one.slots is None for one in gone)

        return self._tell(forget)

    def _tell(self, ask: Callable[[Connection], Awaitable[bool]]) -> bool:
        """Ask on a connection of its own: the supervisor's thread has no loop."""

        async def told() -> bool:
            redis = Connection(self.redis_url, name="aios-up")
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await ask(redis)
            finally:
                await redis.aclose()

        try:
            return asyncio.run(told())
        except (KernelError, TimeoutError, hiredis.ReplyError):
            return False
