"""One normal form for every path that an agent sends; what could lead outside is refused.

A normal path starts with `/`, the root of a namespace, and has its parts in Unicode's form NFC:
`notes/today.md` becomes `/notes/today.md`. Nothing is ever decoded, expanded or resolved later, so
what is refused here is refused for what *other* readers could make of it: a file system under a
mount, a shell, a person who reads an approval.
"""

import re
import unicodedata

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.printable import INVISIBLE
from aios_broker.contract.storage import MAX_NAME_BYTES, MAX_PATH_CHARACTERS

ROOT = "/"
MAX_DEPTH = 64  # parts of a path

# Drawn like a slash or a backslash, and not turned into one by NFKC.
_SLASH_LIKE = frozenset("\u2044\u2215\u2216\u2571\u2572\u27cb\u27cd\u29f5\u29f8\u29f9\u2e4a")
_DOT_LIKE = frozenset("\u2024\u2025\u2026\ufe52\uff0e\ufe19\ua4f8\ua4fa\u0701\u0702")
_REFUSED_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible or direction-changing character",
    "Cs": "half of a surrogate pair",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
# What a door or a proxy that decodes once more would turn into a separator, a dot or a NUL.
_ENCODED = re.compile(r"%(?:25)*(?:2e|2f|5c|00)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")


def normal_path(path: str, field: str = "body.path") -> str:
    """Return the normal form of a path; one slash at its end is dropped.

    Raises:
        InvalidPath: It leads outside, could be read as if it did, or cannot be a name; `field`
            is named in the error.
    """
    if path == ROOT:
        return ROOT
    if len(path) > MAX_PATH_CHARACTERS:
        raise _refused(field, f"it has {len(path)} characters, the limit is {MAX_PATH_CHARACTERS}")
    for character in path:
        _check_character(character, field)
    parts = unicodedata.normalize("NFC", path).removeprefix("/").removesuffix("/").split("/")
    if len(parts) > MAX_DEPTH:
        raise _refused(field, f"it has {len(parts)} parts, the limit is {MAX_DEPTH}")
    for part in parts:
        _check_part(part, field)
    _check_first(parts[0], field)
    return ROOT + "/".join(parts)


def parent_of(path: str) -> str:
    """Return the directory that a normal path lies in; the root lies in itself."""
    return path.rpartition("/")[0] or ROOT


def prefixes_of(path: str) -> list[str]:
    """Return the normal paths on the way down to `path`: the root first, itself last."""
    found = [ROOT]
    at = path.find("/", 1)
    while at > 0:
        found.append(path[:at])
        at = path.find("/", at + 1)
    return found if path == ROOT else [*found, path]


def below(path: str) -> str:
    """Return what the normal paths of all that lies below `path` start with."""
    return path if path == ROOT else path + "/"


def is_within(path: str, directory: str) -> bool:
    """Return whether a normal path is a directory or lies below it."""
    return path == directory or path.startswith(below(directory))


def _check_character(character: str, field: str) -> None:
    if "\x20" <= character < "\x7f" and character != "\\":
        return  # printable ASCII
    code = ord(character)
    what = _REFUSED_CATEGORIES.get(unicodedata.category(character))
    if INVISIBLE.match(character):
        what = "an invisible character"
    if what is None and _reads_as_separator(character):
        what = "a character that reads as a separator or a dot"
    if what is None and (code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF):
        what = "a code point that is no character"
    if what is not None:
        raise _refused(field, f"it has {what} (U+{code:04X})")


def _reads_as_separator(character: str) -> bool:
    if character == "\\" or character in _SLASH_LIKE or character in _DOT_LIKE:
        return True
    plain = unicodedata.normalize("NFKC", character)
    return any(each in "/\\" or each < " " for each in plain) or not plain.strip(".")


def _check_part(part: str, field: str) -> None:
    if not part:
        raise _refused(field, "a part of it is empty")
    if part == "." or part.startswith(".."):
        raise _refused(field, f"the part {part!r} leads elsewhere")
    if part != part.strip() or part.endswith("."):
        raise _refused(field, f"the part {part!r} ends or begins with a space, or ends with a dot")
    if unicodedata.category(part[0]).startswith("M"):
        raise _refused(field, f"the part {part!r} begins with a combining character")
    if _ENCODED.search(part):
        raise _refused(field, f"the part {part!r} has an encoded separator, dot or NUL")
    size_bytes = len(part.encode())
    if size_bytes > MAX_NAME_BYTES:
        raise _refused(field, f"a part of it has {size_bytes} bytes, the limit is {MAX_NAME_BYTES}")


def _check_first(part: str, field: str) -> None:
    if part.startswith("~"):
        raise _refused(field, "it begins with `~`, which stands for a home directory elsewhere")
    if _DRIVE.match(part):
        raise _refused(field, "it begins with a drive letter")


def _refused(field: str, why: str) -> InvalidPath:
    return InvalidPath(
        f"not a path of this namespace: {why}",
        field=field,
        remedy="send plain names with `/` between them, from the namespace's root: notes/today.md",
    )
