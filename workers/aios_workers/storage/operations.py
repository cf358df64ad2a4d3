"""The operations of the storage module, by the body that asks for each."""

from __future__ import annotations

from collections.abc import Mapping

from aios_broker.contract import storage as bodies
from aios_broker.contract.syscall import Body
from aios_workers.config import WorkerConfig
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Operations
from aios_workers.storage.change import Step, StorageLimits, changing, reading
from aios_workers.storage.copies import copy
from aios_workers.storage.directories import list_directory, make_directory
from aios_workers.storage.files import append, create, read, stat, write
from aios_workers.storage.history import diff, rollback, versions
from aios_workers.storage.host import AllowedDirectories
from aios_workers.storage.locks import lock, unlock
from aios_workers.storage.mounts import mount, unmount
from aios_workers.storage.moves import delete, move
from aios_workers.storage.operating import operating
from aios_workers.storage.searching import search
from aios_workers.storage.sharing import open_link, share, unshare

_READING: Mapping[type[Body], Step] = {
    bodies.StorageRead: read,
    bodies.StorageList: list_directory,
    bodies.StorageStat: stat,
    bodies.StorageSearch: search,
    bodies.StorageVersions: versions,
    bodies.StorageDiff: diff,
    bodies.StorageOpen: open_link,
}
_CHANGING: Mapping[type[Body], Step] = {
    bodies.StorageCreate: create,
    bodies.StorageWrite: write,
    bodies.StorageAppend: append,
    bodies.StorageMove: move,
    bodies.StorageDelete: delete,
    bodies.StorageMkdir: make_directory,
    bodies.StorageRollback: rollback,
    bodies.StorageShare: share,
    bodies.StorageUnshare: unshare,
    bodies.StorageLock: lock,
    bodies.StorageUnlock: unlock,
    bodies.StorageMount: mount,
    bodies.StorageUnmount: unmount,
}


def storage_operations(ground: StateGround, config: WorkerConfig) -> Operations:
    """Return what the module can do."""
    limits = StorageLimits(
        config.storage_max_bytes, config.storage_keep_versions,
        AllowedDirectories(config.storage_mounts),
    )  # fmt: skip
    return {
        **{body: reading(ground, limits, step) for body, step in _READING.items()},
        **{body: changing(ground, limits, step) for body, step in _CHANGING.items()},
        bodies.StorageCopy: changing(ground, limits, copy, own=True),
        bodies.StorageOperate: operating(ground, limits, {**_CHANGING, bodies.StorageCopy: copy}),
    }
