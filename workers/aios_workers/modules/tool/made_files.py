"""The files that a call has left in its folder: what a result tells of them, and what they take."""

import base64
import contextlib
import os
import stat
from pathlib import Path

from aios_broker.contract.tools import MadeFile
from aios_workers.modules.tool.sandbox_files import BLOCK_BYTES

MOST_FILES = 1_000  # that a result tells
MOST_CONTENT_BYTES = 1024 * 1024  # of all files, in a result
MOST_MADE = 20_000  # files and folders of a call, small and large
MOST_DEEP = 200  # folders in each other; to look further takes a call and an open file for each


def made_files(workspace: Path) -> tuple[MadeFile, ...]:
    """Return the files of a workspace, small ones with their content; links are none.

    Others of the agent's calls may change it meanwhile: each step goes from a folder that is open.
    """
    found: list[MadeFile] = []
    left = MOST_CONTENT_BYTES
    if not is_folder(workspace):
        return ()
    for parent, folders, names, opened in os.fwalk(workspace):
        folders.sort()
        if _depth(workspace, parent) >= MOST_DEEP:
            folders.clear()
        for name in sorted(names):
            if len(found) == MOST_FILES:
                return tuple(found)
            size = _size_of(name, opened)
            if size is None:
                continue
            content = _read(name, opened, size) if size <= left else b""
            left -= len(content)
            path = Path(parent, name).relative_to(workspace).as_posix()
            if not path.isprintable() or not _is_text(path):
                path = ascii(path)
            found.append(MadeFile(path, size, base64.b64encode(content).decode()))
    return tuple(found)


def is_folder(path: Path) -> bool:
    """Whether there is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _depth(workspace: Path, parent: str) -> int:
    return len(Path(parent).relative_to(workspace).parts)


def _size_of(name: str, folder: int) -> int | None:
    """Return the bytes of a file; None: it is none."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _read(name: str, folder: int, size: int) -> bytes:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return b""
    with os.fdopen(file, "rb") as opened:
        return opened.read(size)


def is_too_large(workspace: Path, most_bytes: int) -> bool:
    """Whether the files of a workspace take more than they may, are too many, or lie too deep.

    One that its call has taken away, or put something else in the place of, has none.
    """
    seen = size = 0
    if not is_folder(workspace):
        return False
    for parent, _, names, opened in os.fwalk(workspace):
        if _depth(workspace, parent) > MOST_DEEP:
            return True
        seen += 1
        for name in names:
            seen += 1
            with contextlib.suppress(OSError):
                found = os.stat(name, dir_fd=opened, follow_symlinks=False)
                size += found.st_blocks * BLOCK_BYTES
        if seen > MOST_MADE or size > most_bytes:
            return True
    return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
