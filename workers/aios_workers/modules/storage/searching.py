"""Find files by the parts of their text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.paths import ROOT, parent_of
from aios_broker.contract.storage import Found, FoundFiles, StorageSearch
from aios_workers.modules.operation import Asked
from aios_workers.modules.storage.namespace import (
    AnyWork,
    FileWork,
    Node,
    not_found,
    on_namespace,
    permitted_path,
)
from aios_workers.search.corpora import CHUNKS, MOUNTED, ChunkQuery, Ranked
from aios_workers.search.embedder import query_vector
from aios_workers.search.query import Query, read_query
from aios_workers.search.ranking import count_unembedded, find

PARTS_PER_HIT = 5  # ranked for each file that is wanted: several may be of one file
MOST_PARTS = 400

_PARTS = """
    SELECT 'file_chunk' AS found_in, c.file_id, c.ordinal, f.path, a.name AS owner, f.version,
           c.start, c.text
      FROM file_chunk c JOIN file f ON f.id = c.file_id JOIN agent a ON a.id = f.owner_id
     WHERE (c.file_id, c.ordinal) IN
           (SELECT * FROM unnest(%(files)s::bigint[], %(ordinals)s::int[]))
    UNION ALL
    SELECT 'mount_chunk', c.file_id, c.ordinal, m.path || '/' || f.inner_path, a.name, 0, c.start,
           c.text
      FROM mount_chunk c JOIN mount_file f ON f.id = c.file_id JOIN mount m ON m.id = f.mount_id
      JOIN agent a ON a.id = f.owner_id
     WHERE (c.file_id, c.ordinal) IN
           (SELECT * FROM unnest(%(mounted_files)s::bigint[], %(mounted_ordinals)s::int[]))
"""


async def search(asked: Asked[StorageSearch]) -> FoundFiles:
    """Find files, or directories, best first; no connection waits for the model."""
    embedder, holder = asked.services.embedder, asked.agent.holder
    said = read_query(asked.body.query)
    vector = await query_vector(embedder, said.text, asked.body.mode, holder)
    async with asked.services.search_turn(said.text, holder), asked.transaction() as work:
        return await _search(await on_namespace(work), said, vector)


async def _search(
    work: FileWork[StorageSearch], said: Query, vector: NDArray[np.float32] | None
) -> FoundFiles:
    body = work.body
    resolved = await permitted_path(work, body.path, "search")
    if resolved.mount is not None:
        await _check_searchable(work, resolved.mount)
    elif resolved.directory is None and resolved.file is None and resolved.path != ROOT:
        raise not_found(resolved)
    query = ChunkQuery(
        said.text,
        min(MOST_PARTS, body.k * PARTS_PER_HIT),
        body.mode,
        None if body.shared else work.owner.id,
        path=resolved.path,
        mounts_of=work.owner.id if work.is_own else None,
        rules=said.rules,
    )
    found = await find(work.cursor, work.services.embedder, query, vector)
    hits = await _hits(work, found, by_directory=body.group_by == "directory")
    unindexed = 0 if vector is None else await count_unembedded(work.cursor, query)
    return FoundFiles(hits, unindexed)


async def _check_searchable(work: AnyWork, mount: Node) -> None:
    [row] = await work.rows("SELECT searchable FROM mount WHERE id = %(id)s", {"id": mount.id})
    if not row.searchable:
        raise InvalidPath(
            f"the directory that is mounted at {mount.path} is not searched",
            field="body.path",
            remedy="unmount it, and mount it with searchable",
        )


async def _hits(
    work: FileWork[StorageSearch], found: Ranked, *, by_directory: bool
) -> tuple[Found, ...]:
    """Return the best part of each file, or of each directory, at most k."""
    own = [key for key, _ in found if key[0] == CHUNKS.table]
    mounted = [key for key, _ in found if key[0] == MOUNTED.table]
    rows = await work.rows(
        _PARTS,
        {
            "files": [file_id for _, file_id, _ in own],
            "ordinals": [ordinal for _, _, ordinal in own],
            "mounted_files": [file_id for _, file_id, _ in mounted],
            "mounted_ordinals": [ordinal for _, _, ordinal in mounted],
        },
    )
    by_key = {(row.found_in, row.file_id, row.ordinal): row for row in rows}
    hits: dict[tuple[str, str], Found] = {}
    for key, score in found:
        row = by_key.get(key)
        if row is not None:
            hit = _hit(row, score, by_directory=by_directory)
            hits.setdefault((hit.owner, hit.path), hit)
    return tuple(hits.values())[: work.body.k]


def _hit(row: Any, score: float, *, by_directory: bool) -> Found:  # noqa: ANN401  a row
    if by_directory:
        return Found(parent_of(row.path), row.owner, score, row.text, offset=row.start)
    return Found(row.path, row.owner, score, row.text, row.version, row.start)
