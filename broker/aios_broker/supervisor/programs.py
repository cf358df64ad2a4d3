"""The processes of a kernel as data: which programs, in which order, how often, how they stop."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import redis

from aios_broker.config import KernelConfig
from aios_broker.embedded.child import Service, always_ready
from aios_broker.queues.keys import Keys

DRAIN_TIMEOUT_S = 10.0  # a worker suspends its generations and lets short jobs end
WORKER_READY_TIMEOUT_S = 120.0  # the model is loaded and tried out
MIGRATE_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 1.0
# A program and not a thread of the supervisor: SQLAlchemy and Alembic leave no memory behind.
MIGRATE = (
    "import os; from aios_broker.ledger.migrate import upgrade; "
    "upgrade(os.environ['AIOS_DATABASE_URL'])"
)


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the kernel, run `count` times at once; numbered when it is a worker."""

    name: str
    command: tuple[str, ...]
    stage: int  # those of a stage start together, when the stage before is ready
    count: int = 1
    is_worker: bool = False  # registers itself in Redis, as RQ's workers do, when it is ready
    one_shot: bool = False

    @property
    def process_names(self) -> list[str]:
        """The names of its processes."""
        if not self.is_worker:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]


def kernel_programs(config: KernelConfig) -> tuple[Program, ...]:
    """Return the programs of a whole kernel, servers not included."""
    python = sys.executable
    worker = (python, "-m", "aios_workers")
    return (
        Program("migrate", (python, "-c", MIGRATE), stage=0, one_shot=True),
        Program("scheduler", (python, "-m", "aios_broker.scheduler"), stage=1),
        Program("llm", (*worker, "llm"), stage=2, count=config.llm_workers, is_worker=True),
        Program("tool", (*worker, "tool"), stage=2, count=config.tool_workers, is_worker=True),
    )


def services_of(
    programs: Sequence[Program], environment: Mapping[str, str], keys: Keys
) -> list[list[Service]]:
    """Return the stages of services that the programs are run as.

    Args:
        programs: In any order; sorted by stage here.
        environment: All variables of the processes, the servers' addresses included.
        keys: Where workers register.
    """
    stages: dict[int, list[Service]] = {}
    for program in sorted(programs, key=lambda program: program.stage):
        stage = stages.setdefault(program.stage, [])
        for name in program.process_names:
            service = Service(
                name=name,
                command=program.command,
                environment=environment,
                stop_timeout_s=DRAIN_TIMEOUT_S,
                one_shot=program.one_shot,
                ready_timeout_s=MIGRATE_TIMEOUT_S,
            )
            if program.is_worker:
                ready = _Registered(environment["AIOS_REDIS_URL"], keys)
                service = replace(service, is_ready=ready, ready_timeout_s=WORKER_READY_TIMEOUT_S)
            stage.append(service)
    return list(stages.values())


@dataclass(frozen=True, slots=True)
class _Registered:
    """Whether the worker of a process id stands in RQ's list of workers."""

    redis_url: str
    keys: Keys

    def __call__(self, pid: int) -> bool:
        try:
            with redis.Redis.from_url(
                self.redis_url,
                socket_timeout=ANSWER_TIMEOUT_S,
                socket_connect_timeout=ANSWER_TIMEOUT_S,
            ) as client:
                workers = client.smembers(self.keys.workers)
                return any(client.hget(worker, "pid") == b"%d" % pid for worker in workers)
        except redis.RedisError:
            return False
