"""The closed tables: which modules have a worker, and which cores there are.

What a worker can run is decided here and by nothing that comes from Redis. The parts of a
module are imported when it is loaded: a tool worker never loads a model's library.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aios_broker.config import PREFIX, environment
from aios_broker.contract.errors import InvalidConfig, UnknownModule
from aios_broker.contract.names import Module
from aios_workers.config import WorkerConfig
from aios_workers.kernel_port import KernelPort
from aios_workers.llm.core import Core
from aios_workers.llm.handler import LlmHandler
from aios_workers.llm.model_core import ModelCore
from aios_workers.run import Handler
from aios_workers.tool.echo import ToolHandler


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module that is ready to run: its core, if it has one, is started."""

    make_handler: Callable[[KernelPort], Handler]  # the handler closes the core
    cores: tuple[str, ...] = ()  # model names it serves


def _llama_core(config: WorkerConfig) -> Core:
    from aios_workers.llm.llama_core import (  # noqa: PLC0415  loads llama.cpp
        LlamaCppConfig,
        LlamaCppCore,
    )

    return LlamaCppCore(LlamaCppConfig(
        slots=config.llm_slots, context_tokens=config.llm_context_tokens,
        threads=config.llm_threads, kv_dir=config.llm_kv_dir,
        kv_max_bytes=config.llm_kv_max_bytes,
    ))  # fmt: skip


def _model_core(config: WorkerConfig) -> Core:
    return ModelCore(config.model_core)


def _sglang_core(config: WorkerConfig) -> Core:
    try:
        from aios_workers.llm.sglang_core import SGLangCore  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"the SGLang core needs the package {error.name}", field="AIOS_LLM_CORE",
            remedy="pip install 'aios-broker[sglang]'",
        ) from error  # fmt: skip
    # What is the kernel's own (addresses with passwords among it) is not for another program.
    kept = {name: value for name, value in environment().items() if not name.startswith(PREFIX)}
    return SGLangCore(config.sglang, environ=kept)


CORES: dict[str, Callable[[WorkerConfig], Core]] = {
    "llama": _llama_core,
    "model": _model_core,
    "sglang": _sglang_core,
}


async def llm_module(core: Core) -> LoadedModule:
    """Start a core and return the llm module on it."""
    try:
        await core.start()
    except BaseException:
        await core.close()
        raise
    return LoadedModule(lambda port: LlmHandler(core, port), (core.info.model,))


async def tool_module(slots: int) -> LoadedModule:
    """Return the tool module."""
    return LoadedModule(lambda _: ToolHandler(slots))


_MODULES: dict[Module, Callable[[WorkerConfig], Awaitable[LoadedModule]]] = {
    "llm": lambda config: llm_module(CORES[config.llm_core](config)),
    "tool": lambda config: tool_module(config.tool_slots),
}


async def load_module(module: Module, config: WorkerConfig) -> LoadedModule:
    """Load what a module needs; for llm this loads the model.

    Raises:
        UnknownModule: No worker of this version serves it.
        CoreError: The core does not start.
        InvalidConfig: The core cannot be what the settings say.
    """
    if module not in _MODULES:
        raise UnknownModule(
            f"no worker serves module {module!r} in this version", field="module",
            remedy=f"use one of {', '.join(_MODULES)}",
        )  # fmt: skip
    return await _MODULES[module](config)
