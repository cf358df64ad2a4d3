"""The operations of the storage module, by the body that asks for each."""

from __future__ import annotations

from aios_broker.contract import storage as bodies
from aios_workers.config import WorkerConfig
from aios_workers.modules.operation import Operations, calls, table
from aios_workers.modules.storage.change import Namespaces, StorageLimits
from aios_workers.modules.storage.copies import copy
from aios_workers.modules.storage.directories import list_directory, make_directory
from aios_workers.modules.storage.files import append, create, read, stat, write
from aios_workers.modules.storage.history import diff, rollback, versions
from aios_workers.modules.storage.host import AllowedDirectories
from aios_workers.modules.storage.locks import lock, unlock
from aios_workers.modules.storage.mounts import mount, unmount
from aios_workers.modules.storage.moves import delete, move
from aios_workers.modules.storage.operating import Operating
from aios_workers.modules.storage.searching import Searching
from aios_workers.modules.storage.sharing import open_link, share, unshare


def storage_operations(config: WorkerConfig) -> Operations:
    """Return what the module can do."""
    limits = StorageLimits(
        config.storage_max_bytes,
        config.storage_keep_versions,
        AllowedDirectories(config.storage_mounts),
    )
    on = Namespaces(limits)
    return table(
        on.reads(bodies.StorageRead, read),
        on.reads(bodies.StorageList, list_directory),
        on.reads(bodies.StorageStat, stat),
        calls(bodies.StorageSearch, Searching(on).search),
        on.reads(bodies.StorageVersions, versions),
        on.reads(bodies.StorageDiff, diff),
        on.reads(bodies.StorageOpen, open_link),
        on.changes(bodies.StorageCreate, create),
        on.changes(bodies.StorageWrite, write, irreversible="overwrite"),
        on.changes(bodies.StorageAppend, append),
        on.changes(bodies.StorageMove, move, irreversible="overwrite"),
        on.changes(bodies.StorageCopy, copy, irreversible="overwrite", own=True),
        on.changes(bodies.StorageDelete, delete, irreversible="delete"),
        on.changes(bodies.StorageMkdir, make_directory),
        on.changes(bodies.StorageRollback, rollback, irreversible="rollback"),
        on.changes(bodies.StorageShare, share),
        on.changes(bodies.StorageUnshare, unshare, irreversible="unshare"),
        on.changes(bodies.StorageLock, lock),
        on.changes(bodies.StorageUnlock, unlock),
        on.changes(bodies.StorageMount, mount),
        on.changes(bodies.StorageUnmount, unmount),
        calls(
            bodies.StorageOperate, Operating(limits).operate, irreversible=("delete", "overwrite")
        ),
    )
