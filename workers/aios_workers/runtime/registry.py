"""What a worker can run, by closed tables, and how it is wired to its queue.

It is decided here and by nothing that comes from Redis. The parts of a module are imported when it
is loaded: a tool worker never loads a model's library.
"""

import asyncio
import faulthandler
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from aios_broker.config import PREFIX, environment
from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import STATE_MODULES
from aios_broker.queues.contexts import Contexts
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import PolicyRow, WorkerCard
from aios_broker.queues.tokens import Tokens
from aios_broker.redis.connection import Connection
from aios_workers.config import WorkerConfig
from aios_workers.llm.core import Core, CoreInfo
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore
from aios_workers.llm.handler import LlmHandler
from aios_workers.modules.tool.echo import ToolHandler
from aios_workers.runtime.executor import Executor, Handler
from aios_workers.runtime.kernel import (
    Kernel,
    LoadSpilled,
    PolicyWatch,
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
    cores: tuple[CoreCard, ...] = ()  # as the fleet sees them

    @property
    def core_names(self) -> tuple[str, ...]:
        """The names of its cores."""
        return tuple(core.name for core in self.cores)


def _llama_core(config: WorkerConfig) -> Core:
    from aios_workers.llm.cores.llama.llama_core import (  # noqa: PLC0415  loads llama.cpp
        LlamaCppConfig,
        LlamaCppCore,
    )

    return LlamaCppCore(
        LlamaCppConfig(
            slots=config.llm_slots,
            context_tokens=config.llm_context_tokens,
            threads=config.llm_threads,
            kv_dir=config.llm_kv_dir,
            kv_max_bytes=config.llm_kv_max_bytes,
        )
    )


def _sglang_core(config: WorkerConfig) -> Core:
    try:
        from aios_workers.llm.cores.sglang.sglang_core import SGLangCore  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"the SGLang core needs the package {error.name}",
            field="AIOS_LLM_CORE",
            remedy="install 'aios-broker[kernel]'",
        ) from error
    # What is the kernel's own (addresses with passwords among it) is not for another program.
    kept = {name: value for name, value in environment().items() if not name.startswith(PREFIX)}
    return SGLangCore(config.sglang, environ=kept)


CORES: dict[str, Callable[[WorkerConfig], Core]] = {
    "llama": _llama_core,
    "simulated": lambda config: SimulatedCore(config.simulated_core),
    "sglang": _sglang_core,
}


async def llm_module(core: Core) -> LoadedModule:
    """Start a core and return the llm module on it."""
    try:
        await core.start()
    except BaseException:
        await core.close()
        raise
    return LoadedModule(lambda kernel: LlmHandler(core, kernel), (card_of(core.info),))


def card_of(info: CoreInfo, name: str = "") -> CoreCard:
    """Return what the fleet is told of a started core; without a name it has its model's."""
    return CoreCard(
        name=name or info.model,
        model=info.model,
        snapshot_model=info.snapshot_model,
        slots=info.slots,
        context_tokens=info.context_tokens,
        preemptible=info.capabilities.preemptible,
        keeps_kv=info.capabilities.preemptible,
    )


async def tool_module(slots: int) -> LoadedModule:
    """Return the tool module."""
    return LoadedModule(lambda _: ToolHandler(slots))


async def load_modules(
    modules: Sequence[Module], config: WorkerConfig, name: str, stack: AsyncExitStack
) -> dict[Module, LoadedModule]:
    """Load what modules need; for llm this loads the model. What they share ends with the stack.

    Args:
        modules: One, or several of memory, storage and access, which share one set of services.
        config: The settings.
        name: How this process shows itself to the servers.
        stack: Closes what the modules share.

    Raises:
        CoreError: The core does not start.
        InvalidConfig: The settings do not do for these modules.
    """
    match modules:
        case ["llm"]:
            return {"llm": await llm_module(CORES[config.llm_core](config))}
        case ["tool"]:
            return {"tool": await tool_module(config.tool_slots)}
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
    """Return the name of this process's worker: host, process id and module or role."""
    host = socket.gethostname().partition(".")[0][:HOSTNAME_CHARACTERS]
    return f"{host}.{os.getpid()}.{role}"


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
) -> AsyncIterator[tuple[Executor, WorkerCard]]:
    """Give what runs a worker's jobs and how it shows itself; its handler is closed behind it."""
    kernel = Kernel(
        queue=queue,
        policy=policy,
        slices=SliceEnds(queue, spec.name, ClaimRequest(0, spec.limits.lease_s, loaded.core_names)),
        streams=StreamSender(queue),
        contexts=Contexts(queue.functions, queue.keys),
        load_spilled=load_spilled,
    )
    handler = loaded.make_handler(kernel)
    try:
        tokens = Tokens(queue.functions.connection, spec.keys)
        yield (
            Executor(handler, spec.module, tokens, spec.name),
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
        blocking = Connection(spec.redis_url, name=f"{spec.name}.wait")
        stack.push_async_callback(blocking.aclose)
        functions = Functions(connection)
        queue = ModuleQueue(functions, spec.module, spec.keys)
        policy = PolicyWatch(Control(functions, spec.keys), spec.module).current
        executor, card = await stack.enter_async_context(
            wired(queue, spec, loaded, policy, load_spilled)
        )
        yield Worker(spec, queue, blocking, executor, card)


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
