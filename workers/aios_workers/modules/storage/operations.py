"""The operations of the storage module, by the body that asks for each."""

from aios_broker.contract import storage as bodies
from aios_workers.modules.operation import calls, table
from aios_workers.modules.storage import files, moves
from aios_workers.modules.storage.changes import apply
from aios_workers.modules.storage.mounts import mount, unmount
from aios_workers.modules.storage.namespace import file_changes, file_reads
from aios_workers.modules.storage.operating import operate
from aios_workers.modules.storage.searching import search

STORAGE_OPERATIONS = table(
    file_reads(bodies.StorageRead, files.read),
    file_reads(bodies.StorageList, moves.list_directory),
    file_reads(bodies.StorageStat, files.stat),
    calls(bodies.StorageSearch, search),
    file_reads(bodies.StorageVersions, files.versions),
    calls(bodies.StorageDiff, files.diff),
    file_reads(bodies.StorageOpen, files.open_link),
    file_changes(bodies.StorageCreate, files.create),
    file_changes(bodies.StorageWrite, files.write, irreversible="overwrite"),
    file_changes(bodies.StorageAppend, files.append, irreversible="overwrite"),
    file_changes(bodies.StorageApply, apply, irreversible=("delete", "overwrite")),
    file_changes(bodies.StorageMove, moves.move, irreversible=("delete", "unshare")),
    file_changes(bodies.StorageCopy, moves.copy, irreversible="overwrite", own=True),
    file_changes(bodies.StorageDelete, moves.delete, irreversible="delete"),
    file_changes(bodies.StorageMkdir, moves.make_directory),
    file_changes(bodies.StorageRollback, files.rollback, irreversible=("rollback", "overwrite")),
    file_changes(bodies.StorageShare, files.share, irreversible="unshare"),
    file_changes(bodies.StorageUnshare, files.unshare, irreversible="unshare"),
    file_changes(bodies.StorageLock, files.lock),
    file_changes(bodies.StorageUnlock, files.unlock),
    file_changes(bodies.StorageMount, mount, irreversible="privilege"),
    file_changes(bodies.StorageUnmount, unmount),
    calls(bodies.StorageOperate, operate, irreversible=("delete", "overwrite", "unshare")),
)
