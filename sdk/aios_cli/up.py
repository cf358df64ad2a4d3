"""`aios up | down | status`: the kernel on this machine, started, stopped and shown."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import (
    ErrorBody,
    KernelError,
    KernelNotRunning,
    Unavailable,
    from_wire,
)
from aios_broker.contract.urls import without_password
from aios_broker.log import KernelLog
from aios_broker.process.child import wait_for
from aios_cli.session import Operator, command, current_config, find_kernel, with_kernel
from aios_cli.tables import Column, Listing, say, show_json
from aios_local.embedded.state import StateDir
from aios_local.supervisor.kernel import START_TIMEOUT_S, EmbeddedKernel
from aios_local.supervisor.process import EXIT_SETTINGS
from aios_local.supervisor.record import KernelRecord, ProcessRecord, is_running, read_record

STOP_TIMEOUT_S = 60.0  # workers drain for 10 s, the servers write what they hold
POLL_S = 0.05
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--detach", "-d", is_flag=True, help="Go to the background when all is ready.")
@click.option("--policy", metavar="NAME", help="Who goes first: fifo, rr or priority.")
@click.option(
    "--core",
    "llm_core",
    type=click.Choice(["llama", "simulated", "sglang"]),
    help="What generates.",
)
@click.option(
    "--slots", "llm_slots", type=click.IntRange(1, 64), help="Generations at once, per worker."
)
@click.option("--workers", "llm_workers", type=click.IntRange(0, 64), help="LLM workers.")
@click.option("--quiet", is_flag=True, help="Log to the file in the state directory alone.")
@click.option(
    "--json", "as_json", is_flag=True, help="With --detach: the status as JSON; errors, too."
)
def up(*, detach: bool, quiet: bool, as_json: bool, **options: str | int | None) -> None:
    """Start a kernel on this machine: servers, scheduler, workers.

    Redis and Postgres are started too, in the state directory, unless AIOS_REDIS_URL and
    AIOS_DATABASE_URL name others. Ctrl-C stops all of it; a second one does not wait for workers.

    \b
    Examples:
      aios up
      aios up --detach --policy fifo
    """  # noqa: D301 - \b keeps click from wrapping
    given = {name: value for name, value in options.items() if value is not None}
    config = msgspec.structs.replace(current_config(), **given)
    if detach:
        record = _start_detached(config)
        if as_json:
            show_json(without_passwords(record))
        else:
            url = without_password(record.redis_url)
            say(f"The kernel runs (process {record.pid}). AIOS_REDIS_URL={url}")
            if record.api_url is not None:
                say(f"Its HTTP API answers at {record.api_url} (its page: `aios ui`)")
        return
    log_path = StateDir.open(config.state_dir).log_dir / "kernel.log"
    log = KernelLog(log_path, None if quiet else sys.stdout, log_format=config.log_format)
    kernel = EmbeddedKernel(config, log=log)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup aios up` means it
            signal.signal(number, lambda *_: kernel.stop())
    kernel.run()


def _show_stopped(done: Mapping[str, bool]) -> None:
    none = f"no kernel runs on {current_config().state_dir}"
    say("stopped" if done["stopped"] else none)


@command(_show_stopped)
def down() -> dict[str, bool]:
    """Stop the kernel that runs on the state directory; it is no error if none does."""
    state_dir = current_config().state_dir
    try:
        record = read_record(state_dir)
    except KernelNotRunning:
        if is_running(state_dir):
            raise
        # One that was killed could not clean up.
        left = StateDir(state_dir.expanduser().absolute())
        left.remove_kv()
        left.record_path.unlink(missing_ok=True)
        return {"stopped": False}
    _stop(state_dir, record)
    return {"stopped": True}


def _start_detached(config: KernelConfig) -> KernelRecord:
    """Start a kernel in a session of its own and wait until it is ready."""
    state = StateDir.open(config.state_dir)
    said_path = state.log_dir / "start.log"  # what it says before, or instead of, its log
    with said_path.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "aios_cli", "up", "--quiet", "--json"],
            env={**environment(), **config.variables()},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def started() -> KernelRecord | None:
        with contextlib.suppress(KernelNotRunning):
            record = read_record(config.state_dir)
            # Not that of another kernel on the same directory.
            return record if record.pid == process.pid and record.state == "running" else None
        return None

    wait_for(lambda: process.poll() is not None or started() is not None, START_TIMEOUT_S, POLL_S)
    if record := started():
        process.returncode = 0  # let go of: Popen warns of a child that it thinks is ours
        return record
    process.terminate()
    raise _why_not_started(said_path.read_bytes(), state.log_dir / "kernel.log")


def _why_not_started(said: bytes, log_path: Path) -> KernelError:
    """Return the error that the kernel ended with; where it left none, its last words."""
    try:
        return from_wire(msgspec.json.decode(said, type=dict[str, ErrorBody])["error"])
    except (msgspec.DecodeError, KeyError):
        words = said.decode(errors="replace").strip().splitlines()
        return Unavailable(
            f"the kernel did not start: {words[-1] if words else 'it said nothing'}",
            remedy=f"its log is {log_path}",
        )


def _stop(state_dir: Path, record: KernelRecord) -> None:
    """Ask the supervisor to stop, wait for it; after a time a second request is a hard one."""
    assert record.pid is not None
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
        if wait_for(lambda: not is_running(state_dir), STOP_TIMEOUT_S / 2):
            return
    raise Unavailable(
        f"the kernel (process {record.pid}) did not stop within {STOP_TIMEOUT_S:.0f} s",
        remedy=f"`kill -9 {record.pid}` ends it and all of its processes",
    )


def _state_of(one: ProcessRecord) -> str:
    if one.state != "failed":
        return one.state
    return "wrong setting" if one.last_exit == EXIT_SETTINGS else "crash loop"


PROCESSES = Listing[ProcessRecord](
    (Column("process"), lambda one: one.name),
    (Column("state"), _state_of),
    (Column("pid", "right"), lambda one: "" if one.pid is None else one.pid),
    (Column("restarts", "right"), lambda one: one.restarts),
    (Column("last exit", "right"), lambda one: "" if one.last_exit is None else one.last_exit),
)


class Status(KernelRecord, frozen=True, kw_only=True):
    """A kernel's record, and who is at work in it."""

    scheduler: str | None = None
    workers: tuple[str, ...] = ()


R = TypeVar("R", bound=KernelRecord)


def without_passwords(record: R) -> R:
    """Return a record as it is shown: who needs its passwords has them, or may read its file."""
    database_url = record.database_url
    return msgspec.structs.replace(
        record,
        redis_url=without_password(record.redis_url),
        database_url=database_url and without_password(database_url),
    )


def _show_status(found: Status) -> None:
    lines = {
        "state": found.state,
        "AIOS_REDIS_URL": found.redis_url,
        "Redis by TCP": found.redis_tcp_url,
        "AIOS_DATABASE_URL": found.database_url or "not set",
        "HTTP API": found.api_url,
        "scheduler": found.scheduler or "none leads",
        "workers": ", ".join(found.workers) or "none",
    }
    for name, value in lines.items():
        if value is not None:
            say(f"{name:<18} {value}")
    if found.processes:
        say()
        PROCESSES.show(found.processes)
    for one in found.processes:
        if one.last_words:
            say(f"\n{one.name}: {one.last_words}")
    for problem in found.problems:
        say(f"\ncores: {problem}")


@command(_show_status, failed=lambda found: any(one.state == "failed" for one in found.processes))
def status() -> Status:
    """Show the kernel's addresses and processes, and who is at work.

    Exit code 0 if it is well; 1 if a process was given up; 3 if there is no kernel, or its Redis
    does not answer. With AIOS_REDIS_URL set, the kernel there is shown; its processes are not
    known here.
    """
    found = without_passwords(Status(**msgspec.structs.asdict(find_kernel())))
    if found.state != "running":  # its Redis may not be there yet
        return found
    return with_kernel(lambda kernel: _at_work(kernel, found))


async def _at_work(kernel: Operator, found: Status) -> Status:
    await kernel.connection.execute("PING")
    workers = tuple(worker.name for worker in await kernel.fleet.live_workers())
    scheduler = await kernel.fleet.leading_scheduler()
    return msgspec.structs.replace(found, scheduler=scheduler, workers=workers)
