"""Run a process of the product with faults around it.

    CHAOS_PLAN=... python -m benchmarks.chaos.launch scheduler
    CHAOS_PLAN=... python -m benchmarks.chaos.launch tool

Exit codes are the process's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from aios_broker.config import environment
from aios_broker.contract.names import Module
from aios_broker.scheduler import __main__ as scheduler
from aios_workers import __main__ as worker
from aios_workers.config import WorkerConfig
from aios_workers.runtime.registry import LoadedModule, load_modules
from benchmarks.chaos.faulty import Faults, jump_clocks
from benchmarks.chaos.plan import VARIABLE, Plan, read_plan
from benchmarks.chaos.poison import limit_memory, poisoned


def prepare(plan: Plan) -> None:
    """Put the plan's faults around this process."""
    limit_memory(plan.memory_bytes)
    jump_clocks(plan)
    Faults(plan).install()
    if plan.poison:
        worker.load_modules = _load_poisoned


async def _load_poisoned(
    modules: Sequence[Module],
    config: WorkerConfig,
    name: str,
    stack: AsyncExitStack,
    core: str | None = None,
) -> dict[Module, LoadedModule]:
    loaded = await load_modules(modules, config, name, stack, core)
    return {module: poisoned(one) if module == "tool" else one for module, one in loaded.items()}


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run the process that is named."""
    prepare(read_plan(environ.get(VARIABLE)))
    if arguments[0] == "scheduler":
        return scheduler.main()
    return worker.main(arguments, environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], environment()))
