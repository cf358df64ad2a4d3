"""The operations of the memory module, by the body that asks for each."""

from aios_broker.contract import memory as bodies
from aios_broker.contract.reply import Result
from aios_workers.modules.memory import adding, changing, reading, records
from aios_workers.modules.memory.evolution import add_evolving, undo
from aios_workers.modules.operation import Asked, calls, changes, reads, table


async def add(asked: Asked[bodies.MemoryAdd]) -> Result:
    """Add a note, by a model's labels and links if asked for."""
    return await (add_evolving if asked.body.evolve else adding.add)(asked)


MEMORY_OPERATIONS = table(
    calls(bodies.MemoryAlloc, changing.alloc),
    calls(bodies.MemoryAdd, add),
    calls(bodies.MemoryGet, reading.get),
    changes(bodies.MemoryUpdate, changing.update, irreversible="overwrite"),
    changes(bodies.MemoryRemove, changing.remove, irreversible="delete"),
    calls(bodies.MemoryList, reading.listed),
    calls(bodies.MemorySearch, reading.search),
    calls(bodies.MemoryContext, reading.context),
    calls(bodies.MemoryLog, adding.log),
    reads(bodies.MemoryHistory, reading.history),
    changes(bodies.MemoryRollback, changing.rollback, irreversible=("rollback", "overwrite")),
    changes(bodies.MemoryUndo, undo, irreversible="overwrite"),
    changes(bodies.MemoryClear, changing.clear, irreversible="clear"),
    changes(bodies.MemoryTtl, changing.ttl, irreversible="delete"),
    changes(bodies.MemoryShare, changing.share, irreversible="unshare"),
    changes(bodies.MemoryUnshare, changing.unshare, irreversible="unshare"),
    calls(bodies.MemoryStat, changing.stat),
    calls(bodies.MemoryDump, records.dump),
    calls(bodies.MemoryRestore, records.restore),
)
