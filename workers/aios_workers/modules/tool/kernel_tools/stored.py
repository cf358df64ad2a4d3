"""Where a call finds the files of its agent's storage: below `storage/` in its folder."""

import posixpath
from pathlib import Path

FOLDER = Path("storage")


def place_of(path: str) -> Path:
    """Return where the file or directory at a path of the storage lies."""
    return FOLDER / posixpath.normpath(f"/{path}").lstrip("/")


def shown_path(place: Path) -> str:
    """Return the path of a place, as the storage has it."""
    return f"/{place.relative_to(FOLDER).as_posix()}"
