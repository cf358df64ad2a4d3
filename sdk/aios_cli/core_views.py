"""The cores of a kernel as a person sees them: what the file wants, and what runs of it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from aios_broker.catalogue import Catalogue, catalogue_path, read_catalogue
from aios_broker.config import KernelConfig
from aios_broker.contract.cores import (
    Core,
    CoreCard,
    LlamaSettings,
    OpenAISettings,
    SGLangSettings,
    kind_of,
)
from aios_broker.contract.errors import KernelNotRunning
from aios_broker.queues.records import CoreView
from aios_broker.views.live import workers_of_cores
from aios_cli.session import Operator, find_kernel, with_kernel
from aios_local.supervisor.cores import name_is_taken
from aios_local.supervisor.record import KernelRecord, ProcessRecord

# serves     a worker answers for it
# starts     its worker loads it
# fails      its worker does not start: `problem` says why
# wrong      its table in the file will not do: `problem` says why
# away       no worker serves it
# off        no kernel runs here
CoreState = Literal["serves", "starts", "fails", "wrong", "away", "off"]


class CoreLine(Struct, frozen=True, kw_only=True):
    """One core, as `aios cores list` shows it."""

    name: str
    kind: str
    model: str
    source: Literal["file", "environment", "fleet"]  # who describes it; fleet: nobody here
    state: CoreState
    problem: str = ""
    slots: int = 0  # of one worker
    workers: int = 0  # that it is to have here
    alive: int = 0  # that serve it, here or elsewhere
    default: bool = False
    aliases: Sequence[str] = ()
    fallback: Sequence[str] = ()
    waiting: int = 0
    running: int = 0


class Fleet(Struct, frozen=True, kw_only=True):
    """What a running kernel says of its cores."""

    cores: Mapping[str, CoreView]
    workers: Mapping[str, int]  # alive, by core
    record: KernelRecord


def read_file(config: KernelConfig) -> Catalogue:
    """Return what the file of a kernel's cores says."""
    return read_catalogue(catalogue_path(config.state_dir, config.cores))


def ask_fleet() -> Fleet | None:
    """Return what the running kernel says; None: none runs."""
    try:
        return with_kernel(fleet_of)
    except KernelNotRunning:
        return None


async def fleet_of(operator: Operator) -> Fleet:
    """Return what the kernel says that an operator is connected to."""
    record = find_kernel()
    cores = {view.card.name: view for view in await operator.control.cores()}
    workers = workers_of_cores(await operator.fleet.live_workers())
    return Fleet(cores=cores, workers=workers, record=record)


def core_lines(config: KernelConfig, fleet: Fleet | None) -> list[CoreLine]:
    """Return all cores: those of the file, the environment's, those of other machines."""
    catalogue = read_file(config)
    lines = [_of_file(name, core, fleet) for name, core in catalogue.cores.items()]
    lines += [
        CoreLine(name=name, kind="", model="", source="file", state="wrong", problem=str(problem))
        for name, problem in catalogue.problems.items()
    ]
    taken = config.environment_core
    lines = [
        line
        if line.name != taken
        else CoreLine(
            name=line.name,
            kind=line.kind,
            model=line.model,
            source="file",
            state="wrong",
            problem=str(name_is_taken(line.name)),
        )
        for line in lines
    ]
    described = {line.name for line in lines}
    if taken is not None:
        is_default = not any(core.default for core in catalogue.cores.values())
        lines.append(_of_environment(taken, config, fleet, default=is_default))
        described.add(taken)
    others = fleet.cores.values() if fleet is not None else ()
    lines += [_of_fleet(view, fleet) for view in others if view.card.name not in described]
    return lines


def model_of(core: Core, card: CoreCard | None) -> str:
    """Return what a core's weights are, as far as is known without it."""
    if card is not None and card.model:
        return card.model
    match core:
        case LlamaSettings(gguf=gguf):
            return (gguf or "smollm2-135m").rpartition("/")[2].removesuffix(".gguf")
        case SGLangSettings(model=model):
            return (model or "").rpartition("/")[2]
        case OpenAISettings(model=model):
            return model
        case _:
            return core.model


def _of_file(name: str, core: Core, fleet: Fleet | None) -> CoreLine:
    view = fleet.cores.get(name) if fleet is not None else None
    state, problem = _state(name, f"llm.{name}-", fleet)
    return CoreLine(
        name=name,
        kind=kind_of(core),
        model=model_of(core, view.card if view is not None else None),
        source="file",
        state=state,
        problem=problem,
        slots=view.card.slots if view is not None and view.card.slots else core.slots,
        workers=core.workers,
        alive=fleet.workers.get(name, 0) if fleet is not None else 0,
        default=core.default,
        aliases=core.aliases,
        fallback=core.fallback,
        waiting=view.waiting if view is not None else 0,
        running=view.running if view is not None else 0,
    )


def _of_environment(
    name: str, config: KernelConfig, fleet: Fleet | None, *, default: bool
) -> CoreLine:
    view = fleet.cores.get(name) if fleet is not None else None
    state, problem = _state(name, "llm-", fleet)
    return CoreLine(
        name=name,
        kind=config.llm_core,
        model=view.card.model if view is not None else name,
        source="environment",
        state=state,
        problem=problem,
        slots=config.llm_slots,
        workers=config.llm_workers,
        alive=fleet.workers.get(name, 0) if fleet is not None else 0,
        default=default,
        waiting=view.waiting if view is not None else 0,
        running=view.running if view is not None else 0,
    )


def _of_fleet(view: CoreView, fleet: Fleet | None) -> CoreLine:
    card = view.card
    alive = fleet.workers.get(card.name, 0) if fleet is not None else 0
    return CoreLine(
        name=card.name,
        kind=card.kind,
        model=card.model,
        source="fleet",
        state="serves" if alive else "away",
        slots=card.slots,
        alive=alive,
        default=card.default,
        aliases=card.aliases,
        fallback=card.fallback,
        waiting=view.waiting,
        running=view.running,
    )


def _state(name: str, process_name: str, fleet: Fleet | None) -> tuple[CoreState, str]:
    """Return how a core of this machine is, and what is wrong with it."""
    if fleet is None:
        return "off", ""
    here = [one for one in fleet.record.processes if is_process(one, process_name)]
    problem = next((one.last_words for one in here if one.last_words), "")
    if fleet.workers.get(name, 0):
        return "serves", problem
    if problem:
        return "fails", problem
    if any(one.state == "starting" for one in here):
        return "starts", ""
    return "away", ""


def is_process(process: ProcessRecord, prefix: str) -> bool:
    """Tell whether a process is one of those that are numbered behind a prefix."""
    return process.name.startswith(prefix) and process.name[len(prefix) :].isdecimal()
