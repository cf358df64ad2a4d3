"""File content between the wire and Postgres: text where it is text, else base64; never changed."""

from __future__ import annotations

import base64
import binascii
import hashlib

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.storage import MAX_FILE_BYTES, Encoding

_LONGEST_CHARACTER_BYTES = 4


def content_bytes(content: str, encoding: Encoding) -> bytes:
    """Return the bytes that a body carries.

    Raises:
        InvalidSyscall: It is not base64, or not text that UTF-8 can hold.
    """
    try:
        if encoding == "base64":
            return base64.b64decode(content, validate=True)
        return content.encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidSyscall(
            f"not {encoding}: {error}",
            field="body.content",
            remedy="encode bytes in standard base64 with padding, and set encoding to base64",
        ) from error


def check_size(size_bytes: int) -> None:
    """Refuse what is too large for one file.

    Raises:
        InvalidSyscall: It is over MAX_FILE_BYTES.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise InvalidSyscall(
            f"the file would have {size_bytes} bytes, the limit is {MAX_FILE_BYTES}",
            field="body.content",
            remedy="split it over several files",
        )


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of content, in hex."""
    return hashlib.sha256(content).hexdigest()


def text_of(content: bytes) -> str | None:
    """Return the text that content is; None: not UTF-8, or nothing Postgres keeps as text."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text else text


def shown(part: bytes, *, is_end: bool) -> tuple[str, Encoding, int]:
    """Return a part of a file for the wire, its encoding, and how many of its bytes that are.

    A character that the end of the part cuts is left for the next one.
    """
    kept = part if is_end else part[: len(part) - _cut_bytes(part)]
    if kept or not part:
        try:
            return kept.decode(), "utf-8", len(kept)
        except UnicodeDecodeError:
            pass
    return base64.b64encode(part).decode(), "base64", len(part)


def _cut_bytes(part: bytes) -> int:
    """Return how many bytes at the end belong to a character that is not complete."""
    for back in range(1, min(_LONGEST_CHARACTER_BYTES, len(part) + 1)):
        byte = part[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue  # in the middle of a character
        width = 4 if byte >= 0b1111_0000 else 3 if byte >= 0b1110_0000 else 2
        return back if byte >= 0b1100_0000 and back < width else 0
    return 0
