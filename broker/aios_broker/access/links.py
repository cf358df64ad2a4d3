"""Links to files: whoever has one may read the file until it expires. Kept as digests."""

import hashlib
from typing import Any

from msgspec import Struct

from aios_broker.contract.errors import NotFound
from aios_broker.postgres.store import Cursor

# What a link that has not expired points to: its file `f` and the owner `a`.
LINKED = """
      FROM share_link l JOIN file f ON f.id = l.file_id JOIN agent a ON a.id = f.owner_id
     WHERE l.digest = %(digest)s AND l.expires_at > now()
"""
# A part of the content of one version of a file.
CONTENT = """
    SELECT substring(b.bytes FROM %(from)s FOR %(count)s) AS bytes, v.size_bytes, v.sha256
      FROM file_version v JOIN blob b ON b.owner_id = v.owner_id AND b.sha256 = v.sha256
     WHERE v.file_id = %(file)s AND v.version = %(version)s
"""
_FILE = f"SELECT f.id, f.version, f.size_bytes, f.sha256 {LINKED}"


class LinkTarget(Struct, frozen=True):
    """The file of a link, as it is now."""

    id: int
    version: int
    size_bytes: int
    sha256: str


def link_digest(link: str) -> str:
    """Return what the kernel keeps of a link: BLAKE2b-256 in hex."""
    return hashlib.blake2b(link.encode(errors="surrogatepass"), digest_size=32).hexdigest()


def no_link() -> NotFound:
    """Return the error of a link that leads nowhere; it does not say whether it ever did."""
    return NotFound(
        "no such link, or it has expired",
        field="body.link",
        remedy="ask for a new one (storage.share with link)",
    )


def content_values(file_id: int, version: int, offset: int, count: int) -> dict[str, Any]:
    """Return the values of `CONTENT`."""
    return {
        "file": file_id,
        "version": version,
        "from": min(offset, 2**31 - 2) + 1,
        "count": count,
    }


async def linked_file(cursor: Cursor, link: str) -> LinkTarget:
    """Return the file that a link points to.

    Raises:
        NotFound: no such link, or it has expired.
    """
    await cursor.execute(_FILE, {"digest": link_digest(link)})
    row = await cursor.fetchone()
    if row is None:
        raise no_link()
    return LinkTarget(row.id, row.version, row.size_bytes, row.sha256)


async def linked_part(cursor: Cursor, file: LinkTarget, offset: int, count: int) -> bytes:
    """Return a part of the content that a link pointed to.

    Raises:
        NotFound: that version is kept no more.
    """
    await cursor.execute(CONTENT, content_values(file.id, file.version, offset, count))
    row = await cursor.fetchone()
    if row is None:
        raise no_link()
    return bytes(row.bytes)
