"""Which embedding model the stored vectors are of."""

from __future__ import annotations

from aios_broker.contract.errors import InvalidConfig
from aios_broker.postgres.session import Cursor
from aios_workers.modules.services import Embedder

_ACTIVE = "SELECT id, name, dimension FROM embedding_model WHERE active"


async def model_number(cursor: Cursor, embedder: Embedder) -> int:
    """Return the number of the embedder's model, which the stored vectors have to be of.

    Raises:
        InvalidConfig: They are of another model, or of another dimension.
    """
    await cursor.execute(_ACTIVE)
    found = await cursor.fetchone()
    if found is not None and (found.name, found.dimension) == (embedder.model, embedder.dimension):
        return int(found.id)
    stored = f"{found.name!r} ({found.dimension} numbers)" if found else "no model"
    raise InvalidConfig(
        f"the stored vectors are of {stored}, this worker's model is {embedder.model!r} "
        f"({embedder.dimension} numbers)",
        field="AIOS_EMBEDDING_MODEL",
        remedy="run `aios reindex` to embed everything anew, or name the stored model again",
    )
