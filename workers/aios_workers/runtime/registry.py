"""What a worker can run, by closed tables, and how it is wired to its queue.

It is decided here and by nothing that comes from Redis. The parts of a module are imported when it
is loaded: a tool worker never loads a model's library.
"""

import asyncio
import faulthandler
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aios_broker.catalogue import read_secret
from aios_broker.config import PREFIX, environment
from aios_broker.contract.cores import (
    CoreCard,
    CoreSettings,
    LlamaSettings,
    OpenAISettings,
    SGLangSettings,
    SimulatedSettings,
)
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import STATE_MODULES
from aios_broker.queues.contexts import Contexts
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.rate_limits import CoreRates
from aios_broker.queues.records import PolicyRow, WorkerCard
from aios_broker.redis.connection import Connection
from aios_workers.config import WorkerConfig
from aios_workers.llm.core import Accounted, Core
from aios_workers.llm.core_entry import CoreEntry
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.llm.handler import LlmHandler
from aios_workers.llm.slicing import PolicyWatch
from aios_workers.modules.tool.echo import EchoHandler
from aios_workers.runtime.executor import Executor, Handler
from aios_workers.runtime.kernel import (
    Kernel,
    LoadSpilled,
    SliceEnds,
    StreamSender,
    nothing_spilled,
)
from aios_workers.runtime.loop import Worker, WorkerSpec

HOSTNAME_CHARACTERS = 40  # of a worker's name
DISTRIBUTION = "aios-broker"
HUNG_LEASES = 3  # so many leases without one turn of the loop; after one, all are lost
CHECKS = 4  # of the loop, within that time


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module that is ready to run: its core, if it has one, is started."""

    make_handler: Callable[[Kernel], Handler]  # the handler closes the core
    entry: CoreEntry | None = None  # of its core

    @property
    def cores(self) -> tuple[CoreCard, ...]:
        """Its cores, as the fleet sees them now."""
        return (self.entry.card,) if self.entry is not None else ()

    @property
    def core_names(self) -> tuple[str, ...]:
        """The names of its cores."""
        return tuple(core.name for core in self.cores)


@dataclass(frozen=True, slots=True)
class CoreHost:
    """What a core finds where it runs, whichever it is."""

    environ: Mapping[str, str]  # with the key that its settings name, if they name one
    kv_dir: Path | None = None  # where cores of this host share KV states; None: nowhere
    kv_max_bytes: int = 0  # of all files there


def make_core(name: str, settings: CoreSettings, host: CoreHost) -> Core:
    """Return a core, not started yet. Without a name it will have its model's.

    Raises:
        InvalidConfig: its settings, its key or what is installed do not do; `field` names the core.
    """
    match settings:
        case LlamaSettings():
            return _llama_core(name, settings, host)
        case SGLangSettings():
            return _sglang_core(name, settings, host)
        case SimulatedSettings():
            return _simulated_core(name, settings)
        case OpenAISettings():
            return _openai_core(name, settings, host)
        case _:
            raise InvalidConfig(
                "this release has no such core",
                field=f"cores.{name}.kind",
                remedy="use llama, sglang or simulated",
            )


def _llama_core(name: str, settings: LlamaSettings, host: CoreHost) -> Core:
    from aios_workers.llm.cores.llama.llama_core import (  # noqa: PLC0415  loads llama.cpp
        LlamaCppConfig,
        LlamaCppCore,
    )

    return LlamaCppCore(
        LlamaCppConfig.of(name, settings, kv_dir=host.kv_dir, kv_max_bytes=host.kv_max_bytes)
    )


def _sglang_core(name: str, settings: SGLangSettings, host: CoreHost) -> Core:
    try:
        from aios_workers.llm.cores.sglang.sglang_core import SGLangCore  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"the SGLang core needs the package {error.name}",
            field=f"cores.{name}.kind",
            remedy="install 'aios-broker[kernel]'",
        ) from error
    # What is the kernel's own (addresses with passwords among it) is not for another program.
    kept = {name: value for name, value in host.environ.items() if not name.startswith(PREFIX)}
    config = SGLangConfig(
        url=settings.url,
        model=settings.model,
        name=name,
        tokenizer=settings.tokenizer,
        api_key=read_secret(settings, name, host.environ),
        python=settings.python or sys.executable,
        flags=tuple(settings.flags),
        log_path=Path(settings.log) if settings.log is not None else None,
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        start_limit_s=settings.start_limit_s,
        first_token_limit_s=settings.first_token_limit_s,
        stall_limit_s=settings.stall_limit_s,
    )
    return SGLangCore(config, environ=kept)


def _openai_core(name: str, settings: OpenAISettings, host: CoreHost) -> Core:
    from aios_workers.llm.cores.openai.openai_core import OpenAICore  # noqa: PLC0415  loads httpx

    return OpenAICore(name, settings, read_secret(settings, name, host.environ))


def _simulated_core(name: str, settings: SimulatedSettings) -> Core:
    return SimulatedCore(
        SimulatedCoreConfig(
            model=settings.model,
            name=name,
            seed=settings.seed,
            slots=settings.slots,
            context_tokens=settings.context_tokens or SimulatedCoreConfig().context_tokens,
            prefill_tokens_per_s=settings.prefill_tokens_per_s,
            decode_tokens_per_s=settings.decode_tokens_per_s,
            kv_tokens=settings.kv_tokens,
            end_probability=settings.end_probability,
        )
    )


async def llm_module(
    core: Core, settings: CoreSettings | None = None, source: str = ""
) -> LoadedModule:
    """Start a core and return the llm module on it; without settings it is a core like any other.

    Args:
        core: Not started yet.
        settings: Its entry, of which the fleet is told what stands in its card.
        source: Who describes it.
    """
    try:
        await core.start()
    except BaseException:
        await core.close()
        raise
    settings = settings or CoreSettings()
    entry = CoreEntry(core.info, settings, source)

    def handler(kernel: Kernel) -> Handler:
        if isinstance(core, Accounted):
            queue = kernel.queue
            core.rates = CoreRates(queue.functions, core.info.name, entry.limits, queue.keys)
        return LlmHandler(core, kernel, entry, share_kv=settings.share_kv)

    return LoadedModule(handler, entry)


async def tool_module(slots: int) -> LoadedModule:
    """Return a tool module that echoes and has no tools."""
    return LoadedModule(lambda _: EchoHandler(slots))


async def _tools(config: WorkerConfig, name: str, stack: AsyncExitStack) -> LoadedModule:
    from aios_workers.modules.tool.handler import ToolHandler  # noqa: PLC0415  loads the database
    from aios_workers.modules.tool.opening import open_tools  # noqa: PLC0415

    tools = await open_tools(config, name, environment(), stack)
    return LoadedModule(lambda kernel: ToolHandler(config.tool_slots, kernel, tools))


async def load_modules(
    modules: Sequence[Module],
    config: WorkerConfig,
    name: str,
    stack: AsyncExitStack,
    core: str | None = None,
) -> dict[Module, LoadedModule]:
    """Load what modules need; for llm this loads the model. What they share ends with the stack.

    Args:
        modules: One, or several of memory, storage and access, which share one set of services.
        config: The settings.
        name: How this process shows itself to the servers.
        stack: Closes what the modules share.
        core: Of llm: which core of the file; None: the one that the environment describes.

    Raises:
        CoreError: The core does not start.
        InvalidConfig: The settings do not do for these modules.
    """
    match modules:
        case ["llm"]:
            called, settings = config.core(core)
            host = CoreHost(environment(), config.llm_kv_dir, config.llm_kv_max_bytes)
            made = make_core(called, settings, host)
            return {"llm": await llm_module(made, settings, config.source)}
        case ["tool"]:
            return {"tool": await _tools(config, name, stack)}
        case _ if modules and all(module in STATE_MODULES for module in modules):
            return await _state_modules(modules, config, name, stack)
        case _:
            raise InvalidConfig(
                f"one worker does not serve {' and '.join(modules)} together",
                field="module",
                remedy=f"start one each; only {', '.join(STATE_MODULES)} share a worker",
            )


async def _state_modules(
    modules: Sequence[Module], config: WorkerConfig, name: str, stack: AsyncExitStack
) -> dict[Module, LoadedModule]:
    from aios_workers.modules.state_handler import (  # noqa: PLC0415  loads the database and a model
        StateHandler,
        open_services,
    )

    services = await open_services(config, name, stack)

    def loaded(module: Module) -> LoadedModule:
        return LoadedModule(lambda _: StateHandler(services, module))

    return {module: loaded(module) for module in modules}


def worker_name(role: str) -> str:
    """Return the name of this process's worker: host, process id, a random part, module or role.

    Two containers may have the same host name and process id.
    """
    host = socket.gethostname().partition(".")[0][:HOSTNAME_CHARACTERS]
    return f"{host}.{os.getpid()}-{_random_part()}.{role}"


@cache
def _random_part() -> str:
    """Return what all workers of this process have in their names."""
    return secrets.token_hex(3)


def _release() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # a checkout that is not installed
        return ""


@asynccontextmanager
async def wired(
    queue: ModuleQueue,
    spec: WorkerSpec,
    loaded: LoadedModule,
    policy: Callable[[], PolicyRow],
    load_spilled: LoadSpilled = nothing_spilled,
    *,
    may_leave: bool = True,
) -> AsyncIterator[tuple[Executor, WorkerCard]]:
    """Give what runs a worker's jobs and how it shows itself; its handler is closed behind it."""
    kernel = Kernel(
        queue=queue,
        policy=policy,
        slices=SliceEnds(queue, spec.name, ClaimRequest(0, spec.limits.lease_s, loaded.core_names)),
        streams=StreamSender(queue),
        contexts=Contexts(queue.functions, queue.keys),
        load_spilled=load_spilled,
        may_leave=may_leave,
    )
    handler = loaded.make_handler(kernel)
    try:
        yield (
            Executor(handler, spec.module, queue, spec.name),
            WorkerCard(
                spec.name,
                spec.module,
                os.getpid(),
                socket.gethostname(),
                handler.capacity,
                loaded.cores,
                _release(),
            ),
        )
    finally:
        await handler.close()


@asynccontextmanager
async def open_worker(
    spec: WorkerSpec, loaded: LoadedModule, load_spilled: LoadSpilled = nothing_spilled
) -> AsyncIterator[Worker]:
    """Wire a worker; free all that it holds, its core too, when the context is left."""
    async with AsyncExitStack() as stack:
        connection = Connection(spec.redis_url, name=spec.name)
        stack.push_async_callback(connection.aclose)
        waiting = [
            Connection(spec.redis_url, name=".".join((spec.name, "wait", *core)))
            for core in ((), *((name,) for name in loaded.core_names))
        ]
        for each in waiting:
            stack.push_async_callback(each.aclose)
        functions = Functions(connection)
        queue = ModuleQueue(functions, spec.module, spec.keys)
        policy = PolicyWatch(Control(functions, spec.keys), spec.module).current
        executor, card = await stack.enter_async_context(
            wired(queue, spec, loaded, policy, load_spilled)
        )
        yield Worker(spec, queue, waiting, executor, card)


@asynccontextmanager
async def watched(lease_s: float) -> AsyncIterator[None]:
    """For the length of a block, see that the loop turns. One that hangs ends the process.

    The thread that watches needs nothing of Python: code that never lets go of the interpreter
    is noticed, too. It writes where each thread stands to standard error, and exits with 1.
    """
    watching = asyncio.create_task(_watch(HUNG_LEASES * lease_s))
    try:
        yield
    finally:
        watching.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _watch(limit_s: float) -> None:
    while True:
        faulthandler.dump_traceback_later(limit_s, exit=True)  # begins anew with each call
        await asyncio.sleep(limit_s / CHECKS)
