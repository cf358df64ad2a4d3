"""What a running kernel says of itself in `kernel.json`, and how others find it there."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig, KernelNotRunning
from aios_broker.process.child import try_lock, wait_for
from aios_local.embedded.state import StateDir

if TYPE_CHECKING:
    from prometheus_client import Metric

LOG_NAME = "kernel.log"
START_REMEDY = "start one with `aios up --detach`"
# `find_kernel` holds the lock for a moment when it asks whether anybody has it.
LOCK_TIMEOUT_S = 0.5

ProcessState = Literal["starting", "running", "waiting", "failed", "stopping", "stopped", "done"]
KernelState = Literal["starting", "running", "stopping"]


class ProcessRecord(Struct, frozen=True):
    """One process below the supervisor. `waiting`: it died and is started again soon.

    `stopping`: it is not wanted any more, or as another one.
    """

    name: str
    state: ProcessState
    pid: int | None = None
    restarts: int = 0
    last_exit: int | None = None  # exit code; negative: the signal that ended it
    last_words: str = ""  # of one that died, until it runs again


class KernelRecord(Struct, frozen=True, kw_only=True):
    """A kernel: where it is reached, and its processes. Fields of newer kernels are ignored."""

    state: KernelState
    redis_url: str
    database_url: str | None
    api_url: str | None = None  # of the HTTP API
    redis_tcp_url: str | None = None
    pid: int | None = None  # of the supervisor; None: not started by `aios up`
    started_at: float | None = None  # Unix time, seconds
    state_dir: str | None = None
    policy: str | None = None
    processes: tuple[ProcessRecord, ...] = ()
    problems: tuple[str, ...] = ()  # what is wrong with its file of cores


def write_record(path: Path, record: KernelRecord) -> None:
    """Replace the file in one step: a reader sees the old record or the new one, whole."""
    building = path.with_name(f"{path.name}.{os.getpid()}")
    building.touch(mode=0o600)  # addresses may hold passwords
    building.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    building.replace(path)


def read_record(state_dir: Path) -> KernelRecord:
    """Return the record of the kernel that runs on a state directory.

    Raises:
        KernelNotRunning: None runs there.
    """
    state = StateDir(state_dir.expanduser().absolute())
    if not is_running(state.path):
        if died(state.path):
            raise KernelNotRunning(
                f"the kernel on {state.path} has died: nobody stopped it",
                remedy=f"its log is {state.log_dir / LOG_NAME}; `aios up --detach` starts it again",
            )
        raise KernelNotRunning(f"no kernel runs on {state.path}", remedy=START_REMEDY)
    try:
        return msgspec.json.decode(state.record_path.read_bytes(), type=KernelRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise KernelNotRunning(
            f"the kernel on {state.path} is only just starting or stopping",
            remedy="try again in a moment",
        ) from error


def died(state_dir: Path) -> bool:
    """Tell whether a kernel ended that nobody stopped: it has left its record behind."""
    state = StateDir(state_dir.expanduser().absolute())
    return state.record_path.exists() and not is_running(state.path)


def is_running(state_dir: Path) -> bool:
    """Tell whether a kernel runs: by its lock, since process ids are used again."""
    path = StateDir(state_dir.expanduser().absolute()).lock_path
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(lock)
    finally:
        os.close(lock)


def find_kernel(config: KernelConfig) -> KernelRecord:
    """Return the kernel that a command is meant for.

    AIOS_REDIS_URL wins: a kernel elsewhere, whose processes this machine does not know.

    Raises:
        KernelNotRunning: Neither is an address set, nor does a kernel run on the state directory.
    """
    if config.redis_url is not None:
        return KernelRecord(
            state="running", redis_url=config.redis_url, database_url=config.database_url
        )
    return read_record(config.state_dir)


def lock_kernel(state: StateDir) -> int:
    """Claim a state directory for one kernel; return the lock's file descriptor.

    Raises:
        InvalidConfig: Another kernel runs on it.
    """
    lock = os.open(state.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not wait_for(lambda: try_lock(lock), LOCK_TIMEOUT_S):
        holder = os.pread(lock, 20, 0).decode().strip()
        os.close(lock)
        raise InvalidConfig(
            f"a kernel already runs on {state.path} (process {holder or 'unknown'})",
            field="AIOS_STATE_DIR",
            remedy="stop it with `aios down`, or name another directory with --state-dir",
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def process_metrics(processes: Sequence[ProcessRecord]) -> Iterator["Metric"]:
    """Yield the metrics of processes: which run, and how often they were restarted."""
    # Not needed otherwise: the supervisor stays small.
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    up = GaugeMetricFamily("aios_process_up", "1 while it runs.", labels=["process"])
    restarts = CounterMetricFamily(
        "aios_process_restarts", "Starts after a death.", labels=["process"]
    )
    for process in processes:
        up.add_metric([process.name], float(process.pid is not None))
        restarts.add_metric([process.name], process.restarts)
    yield up
    yield restarts
