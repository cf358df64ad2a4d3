"""The operations of the memory module, by the body that asks for each."""

from __future__ import annotations

from aios_broker.contract import memory as bodies
from aios_broker.contract.reply import Result
from aios_broker.memory.block import memory_functions
from aios_workers.config import WorkerConfig
from aios_workers.memory.changing import Changing
from aios_workers.memory.desk import Desk
from aios_workers.memory.evolution import Evolution
from aios_workers.memory.ram import Ram
from aios_workers.memory.reading import Reading
from aios_workers.memory.sharing import Sharing
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked, Operations


def memory_operations(ground: StateGround, _config: WorkerConfig) -> Operations:
    """Return what the module can do."""
    return operations_on(memory_desk(ground))


def memory_desk(ground: StateGround) -> Desk:
    """Return the blocks of all agents, and what reaches them."""
    ram = Ram(ground.store, memory_functions(ground.functions.connection), ground.keys)
    return Desk(ground, ram)


def operations_on(desk: Desk) -> Operations:
    """Return the operations on these blocks."""
    changing, reading, sharing = Changing(desk), Reading(desk), Sharing(desk)
    evolution = Evolution(desk, reading)

    async def add(asked: Asked) -> Result:
        return await (evolution.add if asked.body.evolve else changing.add)(asked)

    return {
        bodies.MemoryAlloc: changing.alloc,
        bodies.MemoryAdd: add,
        bodies.MemoryGet: reading.get,
        bodies.MemoryUpdate: changing.update,
        bodies.MemoryRemove: changing.remove,
        bodies.MemoryList: reading.page,
        bodies.MemorySearch: reading.search,
        bodies.MemoryContext: reading.context,
        bodies.MemoryLog: changing.log,
        bodies.MemoryHistory: reading.history,
        bodies.MemoryRollback: changing.rollback,
        bodies.MemoryUndo: evolution.undo,
        bodies.MemoryClear: changing.clear,
        bodies.MemoryTtl: changing.ttl,
        bodies.MemoryShare: sharing.share,
        bodies.MemoryUnshare: sharing.unshare,
        bodies.MemoryStat: changing.stat,
    }
