"""The tools of a worker, opened: where they are described, where they work, what keeps them in."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.tools import SandboxKind
from aios_broker.postgres.store import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.tool_cards import ToolCards
from aios_broker.redis.connection import Connection
from aios_broker.retry import periodic_task
from aios_workers.config import WorkerConfig
from aios_workers.modules.tool.approvals import ToolApprovals
from aios_workers.modules.tool.cards import CardPublisher
from aios_workers.modules.tool.egress.addresses import Dialer
from aios_workers.modules.tool.egress.audit_writer import AuditWriter
from aios_workers.modules.tool.egress.log import EgressLog
from aios_workers.modules.tool.egress.secrets import FILE_NAME, SecretFile
from aios_workers.modules.tool.egress.way_out import Egress
from aios_workers.modules.tool.environments import ToolEnvironments
from aios_workers.modules.tool.processes import ToolProcesses
from aios_workers.modules.tool.registry import ToolRegistry
from aios_workers.modules.tool.removal import remove_tree
from aios_workers.modules.tool.running import Launch, Sandbox, ToolRunner
from aios_workers.modules.tool.sandbox.bubblewrap import chosen_sandbox, end_left
from aios_workers.modules.tool.sandbox.task_groups import BoundedTasks, open_task_groups
from aios_workers.modules.tool.sessions.opening import open_sessions
from aios_workers.modules.tool.sessions.session_answers import SessionAnswers
from aios_workers.modules.tool.stored_files import StoredFiles
from aios_workers.runtime.kernel_calls import SubmittedCalls

WORK = "aios-tools-"  # what the folders begin with in which tools of a worker work
LOCK = "lock"  # held for as long as the worker lives
# All that tools are told of the worker's environment: none of it is a secret.
TOLD = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")


@dataclass(frozen=True, slots=True)
class Tools:
    """What the tool module stands on."""

    registry: ToolRegistry
    runner: ToolRunner
    cards: ToolCards
    approvals: ToolApprovals
    sessions: SessionAnswers
    files: StoredFiles


async def open_tools(
    config: WorkerConfig, name: str, environ: Mapping[str, str], stack: AsyncExitStack
) -> Tools:
    """Open the tools of a worker; they are closed with the stack.

    Args:
        config: The settings.
        name: How this process shows itself to the servers.
        environ: Its environment; tools are told next to nothing of it.
        stack: Closes what is opened.
    """
    folder = stack.enter_context(work_folder())
    sandbox = chosen_sandbox(config.tool_sandbox, (config.state_dir,))
    if (groups := open_task_groups()) is not None:
        stack.push_async_callback(groups.close)  # when all that runs has ended
        sandbox = BoundedTasks(sandbox, groups)
    registry = open_registry(
        config.tools_path,
        config.state_dir,
        environ,
        folder,
        source=config.tools_source,
        sandbox=sandbox,
    )
    stack.push_async_callback(registry.close)
    stores = await stack.enter_async_context(AsyncExitStack())  # closed after all that writes
    open_store = partial(_open_store, config, name, stores)
    egress = await _open_egress(folder, config, open_store, stack)
    runner = ToolProcesses(
        folder / "calls",
        registry.sandbox,
        told_of(environ),
        egress,
        without_sandbox=config.tool_sandbox == "none",
    )
    stack.push_async_callback(runner.close)
    connection = Connection(config.redis_url, name=f"{name}.tools")
    stack.push_async_callback(connection.aclose)
    keys = Keys(config.key_prefix)
    calls = await stack.enter_async_context(
        SubmittedCalls(Functions(connection), keys, config.redis_url, f"{name}.tools")
    )
    cards = ToolCards(connection, keys)
    publisher = CardPublisher(registry, cards, config.tools_source)
    trouble = "the fleet is not told of tools"
    await stack.enter_async_context(periodic_task("tool cards", publisher.step, trouble))
    approvals = ToolApprovals(open_store, config.approval_ttl_s)
    place = Launch((), told_of(environ), folder / "sessions")
    sessions = await open_sessions(config, name, registry.sandbox, place, calls, stack)
    return Tools(registry, runner, cards, approvals, sessions, StoredFiles(calls))


def open_registry(
    path: Path,
    state_dir: Path,
    environ: Mapping[str, str],
    folder: Path,
    *,
    source: str = "",
    sandbox: Sandbox | None = None,
) -> ToolRegistry:
    """Return the registry of the tools that a file describes; it works below a folder.

    Args:
        path: The file.
        state_dir: Where what they depend on is kept; they do not see it.
        environ: Of this process; they are told next to nothing of it.
        folder: Where they are loaded.
        source: Who describes them.
        sandbox: What they are kept in by; None: what this machine has.
    """
    return ToolRegistry(
        path,
        folder / "loading",
        sandbox or chosen_sandbox(sandbox_kind(environ), (state_dir,)),
        told_of(environ),
        ToolEnvironments(state_dir.absolute() / "tool-environments", environ),
        source=source,
    )


def sandbox_kind(environ: Mapping[str, str]) -> SandboxKind:
    """Return what tools are to be kept in by, as an environment says.

    Raises:
        InvalidConfig: It names what there is not.
    """
    match environ.get("AIOS_TOOL_SANDBOX", "bubblewrap"):
        case "bubblewrap" | "none" as kind:
            return kind
        case other:
            raise InvalidConfig(
                f"there is no sandbox {other!r}",
                field="AIOS_TOOL_SANDBOX",
                remedy="use bubblewrap or none",
            )


async def _open_egress(
    folder: Path,
    config: WorkerConfig,
    open_store: Callable[[], Store | None],
    stack: AsyncExitStack,
) -> Egress:
    """Open the ways out of a worker's sandboxes, and note in the audit log what goes there."""
    egress = open_egress(folder, config.state_dir, open_store)
    stack.push_async_callback(egress.log.close)
    await stack.enter_async_context(
        periodic_task("egress log", egress.log.step, "what tools ask of the network is not noted")
    )
    return egress


def open_egress(folder: Path, state_dir: Path, open_store: Callable[[], Store | None]) -> Egress:
    """Return the ways out of sandboxes.

    Args:
        folder: Where their sockets lie.
        state_dir: Where the keys are that tools use.
        open_store: Opens the database of the audit log; where it returns None, the kernel's log
            is told.
    """
    secrets = SecretFile(state_dir / FILE_NAME)
    log = EgressLog(AuditWriter(open_store).write)
    return Egress(folder / "egress", secrets, Dialer(), log)


def told_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what tools are told of an environment."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        **{name: environ[name] for name in TOLD if name in environ},
    }


def _open_store(config: WorkerConfig, name: str, stack: AsyncExitStack) -> Store | None:
    """Return the store that approvals are kept in; None: this kernel has none, or no key of it."""
    key = config.audit_folder.key()
    if config.database_url is None or key is None:
        return None
    store = Store(config.database_url, name=name, audit_key=key)
    stack.push_async_callback(store.aclose)
    return store


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a folder for tools to work in; what workers that died have left there goes first."""
    parent = Path(gettempdir())
    for left in parent.glob(f"{WORK}*"):
        _remove_left(left)
    folder, lock = _new_folder(parent)
    try:
        yield folder
    finally:
        remove_tree(folder)
        os.close(lock)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder, and take its lock: another worker may have taken it for one that was left."""
    while True:
        folder = Path(mkdtemp(prefix=WORK, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def _remove_left(folder: Path) -> None:
    """Remove a folder of a worker of this user's that lives no more, and end what works there.

    Its lock is held until it is gone, so that whoever is about to take it finds out.
    """
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        end_left(folder)
        remove_tree(folder)
    except BlockingIOError:
        return
    finally:
        os.close(lock)
