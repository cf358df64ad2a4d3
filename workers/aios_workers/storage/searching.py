"""Find files by the parts of their text."""

from __future__ import annotations

from typing import Any

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.files import Found, FoundFiles
from aios_broker.contract.paths import ROOT, below, parent_of
from aios_broker.contract.storage import StorageSearch
from aios_workers.storage.change import Work
from aios_workers.storage.namespace import look_up, not_found, require

# The best part of each file, or of each directory; row-level security decides what of others'.
_FIND = """
    WITH asked AS (SELECT websearch_to_tsquery('english', %(query)s) AS words),
    part AS (
        SELECT f.path, a.name AS owner, f.version, c.start, c.text, f.directory_id, f.id,
               ts_rank_cd(c.words, asked.words) AS score
          FROM file_chunk c JOIN file f ON f.id = c.file_id JOIN agent a ON a.id = f.owner_id,
               asked
         WHERE c.words @@ asked.words AND (%(all)s OR c.owner_id = %(owner)s)
           AND (f.path = %(path)s OR starts_with(f.path, %(below)s))
    ), best AS (
        SELECT DISTINCT ON (CASE WHEN %(by_directory)s THEN directory_id ELSE id END) *
          FROM part
         ORDER BY CASE WHEN %(by_directory)s THEN directory_id ELSE id END, score DESC, id, start
    )
    SELECT * FROM best ORDER BY score DESC, owner, path LIMIT %(k)s
"""


async def search(work: Work) -> FoundFiles:
    """Find files, or directories, best first."""
    body: StorageSearch = work.asked.body
    spot = await look_up(work, body.path)
    await require(work, spot, "search")
    if spot.mount is not None:
        raise InvalidPath(
            f"{spot.path} is on the host, mounted at {spot.mount.path}: it is not searched",
            field="body.path", remedy="copy its files into the namespace first",
        )  # fmt: skip
    if spot.directory is None and spot.file is None and spot.path != ROOT:
        raise not_found(spot)
    rows = await work.rows(_FIND, {
        "query": body.query, "owner": work.owner.id, "all": body.shared, "path": spot.path,
        "below": below(spot.path), "by_directory": body.group_by == "directory", "k": body.k,
    })  # fmt: skip
    return FoundFiles(tuple(_hit(row, by_directory=body.group_by == "directory") for row in rows))


def _hit(row: Any, *, by_directory: bool) -> Found:  # noqa: ANN401  a row of psycopg's
    if by_directory:
        return Found(parent_of(row.path), row.owner, row.score, row.text, offset=row.start)
    return Found(row.path, row.owner, row.score, row.text, row.version, row.start)
