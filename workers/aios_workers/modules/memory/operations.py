"""The operations of the memory module, by the body that asks for each."""

from __future__ import annotations

from aios_broker.contract import memory as bodies
from aios_broker.contract.reply import Result
from aios_workers.modules.memory.block import memory_functions
from aios_workers.modules.memory.changing import Changing
from aios_workers.modules.memory.desk import Desk
from aios_workers.modules.memory.evolution import Evolution
from aios_workers.modules.memory.ram import Ram
from aios_workers.modules.memory.reading import Reading
from aios_workers.modules.memory.sharing import Sharing
from aios_workers.modules.operation import Asked, Operations, calls, changes, reads, table
from aios_workers.modules.services import Services


def open_ram(services: Services) -> Ram:
    """Return the blocks of all agents."""
    return Ram(services.store, memory_functions(services.functions.connection), services.keys)


def memory_operations(ram: Ram) -> Operations:
    """Return what the module can do, on these blocks."""
    desk = Desk(ram)
    changing, reading, sharing = Changing(desk), Reading(desk), Sharing(desk)
    evolution = Evolution(desk, reading)

    async def add(asked: Asked[bodies.MemoryAdd]) -> Result:
        return await (evolution.add if asked.body.evolve else changing.add)(asked)

    return table(
        calls(bodies.MemoryAlloc, changing.alloc),
        calls(bodies.MemoryAdd, add),
        calls(bodies.MemoryGet, reading.get),
        changes(bodies.MemoryUpdate, changing.update),
        changes(bodies.MemoryRemove, changing.remove, irreversible="delete"),
        reads(bodies.MemoryList, reading.page),
        calls(bodies.MemorySearch, reading.search),
        calls(bodies.MemoryContext, reading.context),
        calls(bodies.MemoryLog, changing.log),
        reads(bodies.MemoryHistory, reading.history),
        changes(bodies.MemoryRollback, changing.rollback, irreversible="rollback"),
        changes(bodies.MemoryUndo, evolution.undo),
        changes(bodies.MemoryClear, changing.clear, irreversible="clear"),
        changes(bodies.MemoryTtl, changing.ttl),
        changes(bodies.MemoryShare, sharing.share),
        changes(bodies.MemoryUnshare, sharing.unshare, irreversible="unshare"),
        calls(bodies.MemoryStat, changing.stat),
    )
