"""Files that a run has made or changed in its session's workspace."""

import base64
import contextlib
import os
import stat
from pathlib import Path

from aios_broker.contract.tools import MadeFile

MOST_SEEN = 20_000  # files and folders of a session, empty ones too
MOST_DEPTH = 200  # of folders in folders
MOST_FILES = 200  # that a result tells
MOST_CONTENT_BYTES = 1024 * 1024  # of all, in a result
_BLOCK_BYTES = 512  # of which the file system tells a file's size on the disk

Stamps = dict[str, tuple[int, int, int]]


def stamps(workspace: Path) -> Stamps:
    """Return the files of a workspace, and what changes when one is written."""
    found: Stamps = {}
    for parent, folders, names, opened in os.fwalk(workspace):
        _order(workspace, parent, folders)
        for name in sorted(names):
            if len(found) >= MOST_SEEN:
                return found
            with contextlib.suppress(OSError):
                seen = os.stat(name, dir_fd=opened, follow_symlinks=False)
                if stat.S_ISREG(seen.st_mode):
                    path = os.path.relpath(os.path.join(parent, name), workspace)
                    found[path] = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
    return found


def made_since(workspace: Path, before: Stamps) -> tuple[MadeFile, ...]:
    """Return the files that are new or changed, small ones with their content; links are none.

    What runs in the session may change it meanwhile: each step goes from a folder that is open.
    """
    found: list[MadeFile] = []
    left = MOST_CONTENT_BYTES
    for parent, folders, names, opened in os.fwalk(workspace):
        _order(workspace, parent, folders)
        for name in sorted(names):
            if len(found) == MOST_FILES:
                return tuple(found)
            path = os.path.relpath(os.path.join(parent, name), workspace)
            with contextlib.suppress(OSError):
                seen = os.stat(name, dir_fd=opened, follow_symlinks=False)
                stamp = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
                if not stat.S_ISREG(seen.st_mode) or before.get(path) == stamp:
                    continue
                content = _read(name, opened, seen.st_size) if seen.st_size <= left else b""
                left -= len(content)
                found.append(
                    MadeFile(_shown(path), seen.st_size, base64.b64encode(content).decode())
                )
    return tuple(found)


def space_of(workspace: Path) -> tuple[int, int, int]:
    """Return how many files and folders a workspace has, their bytes on the disk, their depth.

    Hidden ones and all; where there are more than `MOST_SEEN`, or deeper ones than `MOST_DEPTH`, it
    counts no further: to walk on would need as many calls within each other.
    """
    count = size = depth = 0
    for parent, folders, names, opened in os.fwalk(workspace):
        count += len(folders) + len(names)
        depth = max(depth, _depth(workspace, parent))
        if count > MOST_SEEN or depth > MOST_DEPTH:
            break
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(name, dir_fd=opened, follow_symlinks=False).st_blocks * _BLOCK_BYTES
    return count, size, depth


def _depth(workspace: Path, parent: str) -> int:
    return parent.count("/") - str(workspace).count("/")


def _order(workspace: Path, parent: str, folders: list[str]) -> None:
    """Have folders looked at by name, and none that lie too deep."""
    folders.sort()
    if _depth(workspace, parent) >= MOST_DEPTH:
        folders.clear()


def _read(name: str, folder: int, size: int) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(file, "rb") as opened:
        return opened.read(size)


def _shown(path: str) -> str:
    is_text = path.isprintable() and path.encode(errors="replace").decode() == path
    return path if is_text else ascii(path)
