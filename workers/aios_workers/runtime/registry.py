"""The closed tables: which modules have a worker, and which cores there are.

What a worker can run is decided here and by nothing that comes from Redis. The parts of a
module are imported when it is loaded: a tool worker never loads a model's library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aios_broker.config import PREFIX, environment
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import STATE_MODULES
from aios_workers.config import WorkerConfig
from aios_workers.llm.core import Core
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore
from aios_workers.llm.handler import LlmHandler
from aios_workers.modules.tool.echo import ToolHandler
from aios_workers.runtime.executor import Handler
from aios_workers.runtime.slices import Kernel


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module that is ready to run: its core, if it has one, is started."""

    make_handler: Callable[[Kernel], Handler]  # the handler closes the core
    cores: tuple[str, ...] = ()  # the names of the models it serves


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
            remedy="pip install 'aios-broker[sglang]'",
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
    return LoadedModule(lambda kernel: LlmHandler(core, kernel), (core.info.model,))


async def tool_module(slots: int) -> LoadedModule:
    """Return the tool module."""
    return LoadedModule(lambda _: ToolHandler(slots))


async def load_modules(
    modules: Sequence[Module], config: WorkerConfig, name: str, stack: AsyncExitStack
) -> dict[Module, LoadedModule]:
    """Load what modules need; for llm this loads the model. What they share ends with the stack.

    Args:
        modules: One, or several of memory, storage and access, which share a services.
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
